//! The questions of a run: built in, or one per line from a file (plain text, or JSON with a `question` or `prompt`).

use std::path::Path;

use crate::BenchError;

/// The most prompts that are read from a file.
pub const PROMPTS_MAX: usize = 10_000;

const BUILT_IN: [&str; 12] = [
    "What is 17 plus 25?",
    "How many centimetres are in 3 metres?",
    "Which day comes after Tuesday?",
    "What is the capital of France?",
    "Sort these numbers: 9, 2, 5.",
    "How do you spell the word friend?",
    "Which is larger, 41 or 14?",
    "How many letters are in the word planet?",
    "What is 6 times 7?",
    "How many days are in a week?",
    "What is the opposite of cold?",
    "Hello, how are you?",
];

/// The built-in questions.
pub fn built_in() -> Vec<String> {
    BUILT_IN.iter().map(|q| (*q).to_owned()).collect()
}

/// From a file, at most [`PROMPTS_MAX`]; blank lines are skipped.
pub fn from_file(path: &Path) -> Result<Vec<String>, BenchError> {
    let wrong = |reason: String| BenchError::Prompts { path: path.display().to_string(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let mut prompts = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if prompts.len() == PROMPTS_MAX {
            return Err(wrong(format!("more than {PROMPTS_MAX} prompts; give fewer")));
        }
        prompts.push(if line.trim_start().starts_with('{') {
            let value: serde_json::Value =
                serde_json::from_str(line).map_err(|e| wrong(format!("line {}: not JSON: {e}", at + 1)))?;
            let found = ["question", "prompt"].iter().find_map(|key| value[*key].as_str());
            found
                .ok_or_else(|| wrong(format!("line {}: neither `question` nor `prompt` is a text", at + 1)))?
                .to_owned()
        } else {
            line.to_owned()
        });
    }
    if prompts.is_empty() {
        return Err(wrong("no prompt in it; write one per line".into()));
    }
    Ok(prompts)
}
