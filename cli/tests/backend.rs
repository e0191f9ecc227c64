//! What computes, on a machine without a GPU: the binary starts, with and without the feature `cuda`, and says what is missing.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Running, command, text};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

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
