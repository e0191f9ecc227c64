//! Style that a machine can check: file length, module docs, no `unwrap` outside tests, no dead links in the docs.
#![allow(clippy::unwrap_used)]

#[path = "tidy/source.rs"]
mod source;

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 500;
const SKIPPED: [&str; 6] = ["target", ".git", "node_modules", "venv", "__pycache__", ".polylink"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn files(extensions: &[&str]) -> Vec<PathBuf> {
    fn walk(directory: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    walk(&path, extensions, found);
                }
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), extensions, &mut found);
    found.sort();
    assert!(!found.is_empty(), "no file of {extensions:?} found: the test looks in the wrong place");
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// A file of tests: under `tests/`, or `tests.rs`, or a harness of tests (`testing.rs`, `testbed.rs`).
fn is_test(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    shown(path).contains("/tests/") || ["tests.rs", "testing.rs", "testbed.rs"].contains(&name.as_ref())
}

#[test]
fn files_are_short() {
    let long: Vec<String> = files(&["rs", "py", "sh", "mjs", "cu", "cuh"])
        .iter()
        .map(|p| (shown(p), fs::read_to_string(p).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines, at most {LINES_MAX}: split it by concern"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn modules_open_with_their_purpose() {
    let silent: Vec<String> = files(&["rs"])
        .iter()
        .filter(|p| !is_test(p) && !fs::read_to_string(p).unwrap().lines().any(|line| line.starts_with("//! ")))
        .map(|p| format!("{}: no `//!` that says what it is and why", shown(p)))
        .collect();
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

#[test]
fn nothing_unwraps_panics_without_a_reason_or_is_left_undone_outside_tests() {
    let mut wrong = Vec::new();
    for path in files(&["rs"]).iter().filter(|p| !is_test(p) && !shown(p).contains("/examples/")) {
        for (line, word) in source::faults(&fs::read_to_string(path).unwrap()) {
            wrong.push(format!("{}:{line}: {word}: handle it, or say in a sentence why it cannot be", shown(path)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tests_are_not_ignored() {
    let attribute = concat!("#[", "ignore");
    let ignored: Vec<String> = files(&["rs"])
        .iter()
        .filter(|p| fs::read_to_string(p).unwrap().contains(attribute))
        .map(|p| shown(p))
        .collect();
    assert!(ignored.is_empty(), "ignored tests in {ignored:?}");
}

#[test]
fn unsafe_code_is_in_kernels_only() {
    let word = concat!("unsafe", "_code");
    let wrong: Vec<String> = files(&["rs"])
        .iter()
        .filter(|p| !shown(p).starts_with("kernels/"))
        .filter(|p| fs::read_to_string(p).unwrap().contains(&format!("allow({word}")))
        .map(|p| shown(p))
        .filter(|p| !p.contains("/tests/"))
        .collect();
    assert!(wrong.is_empty(), "unsafe code outside kernels: {wrong:?}");
}

#[test]
fn links_in_the_docs_lead_somewhere() {
    let mut dead = Vec::new();
    for path in files(&["md"]) {
        let text = fs::read_to_string(&path).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or("").split('#').next().unwrap_or("");
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !path.parent().unwrap().join(target).exists() {
                dead.push(format!("{}: {target}", shown(&path)));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}
