//! What the audit's rounds show: samples, results, and what every judge revealed.

use serde_json::Value;
use std::collections::BTreeMap;

use super::Net;

/// What one judge found for one answer.
#[derive(Clone, Debug)]
pub struct Finding {
    pub epoch: u64,
    pub worker: String,
    pub missing: bool,
    pub tokens: u64,
    pub mismatches: u64,
    pub margin_micro: u64,
    pub sketch_error_nano: u64,
    pub evidence_milli: i64,
}

/// A round of the audit.
#[derive(Clone, Debug)]
pub struct Round {
    pub json: Value,
    /// Of all judges that revealed.
    pub findings: Vec<Finding>,
    /// Audited answers by worker: those with a result.
    pub audited: BTreeMap<String, u64>,
}

/// `ROUND_PHASE_SETTLED`.
const SETTLED: i64 = 5;

impl Round {
    /// The round over an epoch's receipts; `None` where there is none.
    pub fn of(net: &Net, epoch: u64) -> Option<Self> {
        let output = net.run(&["query", "round", &epoch.to_string(), "--json"]);
        let round = serde_json::from_slice::<Value>(&output.stdout).ok()?["round"].take();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let worker_of = |sample: &Value| {
            let found = list(&round["samples"]).into_iter().find(|s| s["number"] == *sample);
            found.map(|s| s["worker"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
        };
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"));
        let mut findings = Vec::new();
        for score in list(&round["seats"]).iter().flat_map(|seat| list(&seat["revealed"]["scores"])) {
            findings.push(Finding {
                epoch,
                worker: worker_of(&score["sample"]),
                missing: score["missing"] == true,
                tokens: number(&score["tokens"]),
                mismatches: number(&score["token_mismatches"]),
                margin_micro: number(&score["margin_micro"]),
                sketch_error_nano: number(&score["sketch_error_nano"]),
                evidence_milli: score["evidence_milli"].as_i64().unwrap(),
            });
        }
        let mut audited = BTreeMap::new();
        for result in list(&round["results"]) {
            *audited.entry(worker_of(&result["sample"])).or_default() += 1;
        }
        Some(Self { json: round, findings, audited })
    }

    pub fn is_settled(&self) -> bool {
        self.json["phase"] == SETTLED
    }

    /// Judges with a seat that did not reveal.
    pub fn silent(&self) -> Vec<&str> {
        let seats = self.json["seats"].as_array().into_iter().flatten();
        let silent = seats.filter(|seat| !seat["revealed"]["scores"].is_array());
        silent.map(|seat| seat["judge"].as_str().unwrap_or_default()).collect()
    }
}

/// A line about some findings: smallest and largest figures.
pub fn summary<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> String {
    let findings: Vec<&Finding> = findings.into_iter().collect();
    let range = |of: &dyn Fn(&Finding) -> i64| {
        let values = findings.iter().map(|f| of(f));
        format!("{} to {}", values.clone().min().unwrap_or_default(), values.max().unwrap_or_default())
    };
    format!(
        "{} scores ({} missing): margin {} µ, sketch error {} n, mismatches {} of {} tokens, evidence {} m",
        findings.len(),
        findings.iter().filter(|f| f.missing).count(),
        range(&|f| f.margin_micro as i64),
        range(&|f| f.sketch_error_nano as i64),
        findings.iter().map(|f| f.mismatches).sum::<u64>(),
        findings.iter().map(|f| f.tokens).sum::<u64>(),
        range(&|f| f.evidence_milli),
    )
}
