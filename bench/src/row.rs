//! Rows of results: what every `polylink bench …` writes as JSON, and what its table is made from.
//!
//! `ratio` is ours over `against`, turned so that larger is better; both are empty when nothing was measured beside.

use serde::{Deserialize, Serialize};
use std::path::Path;

use crate::BenchError;
use crate::stats::Summary;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Such as `serve.ttft.p50`.
    pub name: String,
    /// In `unit`.
    pub value: f64,
    /// Such as `ms`.
    pub unit: String,
    /// The peer or limit measured in the same run.
    pub against: Option<String>,
    /// Larger is better.
    pub ratio: Option<f64>,
    /// Samples behind the value.
    pub runs: usize,
    /// Standard deviation of the samples, in `unit`.
    pub spread: f64,
}

impl Row {
    /// A figure without a peer.
    pub fn new(name: impl Into<String>, value: f64, unit: &str, runs: usize, spread: f64) -> Self {
        Self { name: name.into(), value, unit: unit.into(), against: None, ratio: None, runs, spread }
    }

    /// The three percentiles of a summary as `name.p50`, `name.p95`, `name.p99`.
    pub fn percentiles(name: &str, unit: &str, summary: &Summary) -> Vec<Self> {
        [("p50", summary.p50), ("p95", summary.p95), ("p99", summary.p99)]
            .into_iter()
            .map(|(p, value)| Self::new(format!("{name}.{p}"), value, unit, summary.count, summary.deviation))
            .collect()
    }
}

/// Writes rows as one JSON array.
pub fn write_json(path: &Path, rows: &[Row]) -> Result<(), BenchError> {
    let text = serde_json::to_string_pretty(rows).expect("rows have string keys and finite or null numbers");
    std::fs::write(path, text + "\n").map_err(|source| BenchError::Write { path: path.display().to_string(), source })
}

/// A table for people, one row a line.
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
    rows.iter()
        .map(|r| format!("{:width$}  {:>12.2} {:<9} n={} ±{:.2}\n", r.name, r.value, r.unit, r.runs, r.spread))
        .collect()
}
