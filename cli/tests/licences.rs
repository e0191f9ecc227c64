//! Every package that is linked has a licence that goes with Apache-2.0, and none brings what the project does without
//! (a C++ database, aws-lc, onig).
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::process::Command;

const GOOD: [&str; 14] = [
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "CC0-1.0",
    "0BSD",
    "MPL-2.0",
    "BSL-1.0",
    "Unlicense",
    "CDLA-Permissive-2.0",
];
const UNWANTED: [&str; 5] = ["aws-lc-rs", "aws-lc-sys", "onig", "librocksdb-sys", "openssl-sys"];

fn packages() -> Vec<Value> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path", manifest])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let resolved: std::collections::BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|n| n["id"].as_str().unwrap()).collect();
    let all = metadata["packages"].as_array().unwrap();
    all.iter().filter(|p| resolved.contains(p["id"].as_str().unwrap())).cloned().collect()
}

/// SPDX: `OR` needs one good side, `AND` both; `/` is an old `OR`. Exceptions only permit more.
fn is_good(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    if let Some((left, right)) = split(expression, " OR ") {
        return is_good(left) || is_good(right);
    }
    if let Some((left, right)) = split(expression, " AND ") {
        return is_good(left) && is_good(right);
    }
    match expression.strip_prefix('(').and_then(|e| e.strip_suffix(')')) {
        Some(inner) => is_good(inner),
        None => GOOD.contains(&expression.split(" WITH ").next().unwrap_or("").trim()),
    }
}

/// Splits at the first operator outside parentheses.
fn split<'a>(expression: &'a str, operator: &str) -> Option<(&'a str, &'a str)> {
    let mut depth = 0;
    for (at, c) in expression.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && expression[at..].starts_with(operator) => {
                return Some((&expression[..at], &expression[at + operator.len()..]));
            }
            _ => {}
        }
    }
    None
}

#[test]
fn licences_go_with_ours() {
    let wrong: Vec<String> = packages()
        .iter()
        .filter(|p| !is_good(p["license"].as_str().unwrap_or("none")))
        .map(|p| format!("{} {}: {}", p["name"], p["version"], p["license"]))
        .collect();
    assert!(wrong.is_empty(), "licences that do not go with Apache-2.0:\n{}", wrong.join("\n"));
}

#[test]
fn heavy_dependencies_stay_out() {
    let found: Vec<String> = packages()
        .iter()
        .filter_map(|p| p["name"].as_str())
        .filter(|name| UNWANTED.contains(name))
        .map(str::to_owned)
        .collect();
    assert!(found.is_empty(), "{found:?}: choose features of their dependents that do without");
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    for (expression, good) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(GPL-2.0 OR LGPL-3.0) AND MIT", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
        ("MIT/Apache-2.0", true),
        ("none", false),
    ] {
        assert_eq!(is_good(expression), good, "{expression}");
    }
}
