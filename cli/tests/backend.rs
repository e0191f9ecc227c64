//! `polylink serve` by itself. What computes, on a machine without a GPU: the binary starts, with and without the feature
//! `cuda`, and says what is missing; which models it serves, and how it ends.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Running, command, text};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const SERVE: [&str; 8] = ["serve", "--local", "--model", "nano", "--listen", "127.0.0.1:0", "--threads", "1"];

/// Where there is a driver the tests of the kernels say more.
fn gpu() -> bool {
    let there = Path::new("/dev/nvidiactl").exists();
    if there {
        println!("skipped: this machine has a GPU");
    }
    there
}

#[test]
fn a_gpu_that_is_asked_for_and_not_there_is_an_error_that_says_what_is_missing() {
    if gpu() {
        return;
    }
    let output = command(&[&SERVE[..], &["--backend", "cuda"]].concat()).output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && !said.contains("panicked"), "{said}");
    if cfg!(feature = "cuda") {
        assert!(said.contains("no CUDA driver") && said.contains("install the NVIDIA driver"), "{said}");
    } else {
        assert!(said.contains("built without CUDA") && said.contains("make cuda"), "{said}");
    }
    // A profile of tensor cores is nothing that a CPU may compute in its place.
    let said = common::fails(&[&SERVE[..], &["--dtype", "sm90-bf16"]].concat());
    assert!(said.contains("sm90-bf16 is computed by a GPU, and none is used here"), "{said}");
}

#[test]
fn left_open_the_cpu_computes_and_says_why() {
    if gpu() {
        return;
    }
    let mut serve = command(&[&SERVE[..], &["--backend", "auto"]].concat());
    let mut running = Running(serve.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.contains("serves polylink/nano"), "{ready}");
    running.0.kill().unwrap();
    let mut said = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    if cfg!(feature = "cuda") {
        assert!(said.contains("the CPU computes") && said.contains("no CUDA driver"), "{said}");
    } else {
        assert!(!said.contains("CUDA"), "a program without kernels has nothing to say of them: {said}");
    }
}

/// A model that was never taught to talk continues texts.
#[test]
fn a_model_without_a_chat_template_is_served() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(common::models().join("pico")).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let path = folder.path().display().to_string();
    let mut serve = command(&["serve", "--local", "--model", &path, "--listen", "127.0.0.1:0", "--threads", "1"]);
    let mut running = Running(serve.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.contains("serves polylink/"), "{ready}");
}

/// SIGTERM: what is under way is finished and sent, nothing new is taken, and the process ends in order.
#[test]
fn a_server_that_is_asked_to_end_finishes_its_answers() {
    let mut serve = command(&["serve", "--local", "--model", "pico", "--listen", "127.0.0.1:0", "--threads", "1"]);
    let mut running = Running(serve.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let address = ready.strip_prefix("http://").and_then(|rest| rest.split_once("/v1")).unwrap().0;
    let mut answer = TcpStream::connect(address).unwrap();
    let body = r#"{"model": "polylink/pico", "prompt": "What", "max_tokens": 900, "ignore_eos": true, "n": 16,
        "stream": true}"#;
    write!(answer, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut received = vec![0; 512];
    answer.read_exact(&mut received).unwrap();
    let pid = Pid::from_raw(i32::try_from(running.0.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    answer.read_to_end(&mut received).unwrap();
    let received = text(&received);
    assert_eq!(received.matches("\"finish_reason\":\"length\"").count(), 16, "all of it");
    assert!(received.contains("data: [DONE]"));
    assert!(running.0.wait().unwrap().success());
    assert!(TcpStream::connect(address).is_err());
}

/// `bench/gpu.sh` on a machine that lacks something: it says what, and ends in failure before anything runs.
#[test]
fn what_a_machine_lacks_for_the_gpus_script_is_named() {
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        println!("skipped: this machine has no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let run = |parts: &[&str], path: &str| {
        let mut script = Command::new("/bin/sh");
        script.arg("bench/gpu.sh").args(parts).current_dir(&root).env("PATH", path).env("GPU_BUNDLE", &bundle);
        script.env("OUT", folder.path().join("out")).env("GPU_WORK", folder.path().join("work"));
        let output = script.output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!output.status.success(), "{said}");
        said
    };
    let path = std::env::var("PATH").unwrap();
    let lacks = |what: &str| {
        let said = run(&["kernels", "times"], &path);
        assert!(said.contains(what), "{what}: {said}");
    };
    let said = run(&["kernels", "sneeze"], &path);
    assert!(said.contains("sneeze: kernels, e2e, sanitize"), "{said}");
    assert!(run(&[], "/nowhere").contains("python3 is missing"));
    lacks("no bundle in");
    std::fs::create_dir_all(bundle.join("bin")).unwrap();
    std::fs::write(bundle.join("polylink-gpu.tar.gz"), "no archive").unwrap();
    lacks("no bundle in");
    std::fs::write(bundle.join("about"), format!("root {}\ncommit none\nnvcc none\n", root.display())).unwrap();
    lacks("there is no");
    let program = |name: &str, text: &str| {
        let path = bundle.join("bin").join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("polylink", "cut off");
    program("test-polylink_kernels", "#!/bin/sh\n");
    lacks("bin/test-cuda");
    program("test-cuda", "#!/bin/sh\n");
    lacks("bin/polylink does not start here");
    std::fs::remove_file(bundle.join("bin/polylink")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_polylink"), bundle.join("bin/polylink")).unwrap();
    if !gpu() {
        lacks("no GPU can be used");
    }
}
