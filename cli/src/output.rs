//! What commands print: for people, or one JSON document for scripts.

use serde::Serialize;
use serde_json::Value;

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON for a script.
    pub json: bool,
}

impl Output {
    /// Prints a result: indented JSON, or `key: value` lines for people.
    pub fn value<T: Serialize>(&self, value: &T) {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        if self.json {
            println!("{value:#}");
        } else {
            print!("{}", readable(&value, 0));
        }
    }

    /// Prints a line for people; a script does not see it.
    pub fn say(&self, line: impl std::fmt::Display) {
        if !self.json {
            println!("{line}");
        }
    }
}

fn readable(value: &Value, depth: usize) -> String {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(key, v)| match v {
                Value::Object(inner) if !inner.is_empty() => format!("{pad}{key}:\n{}", readable(v, depth + 1)),
                Value::Array(list) if list.iter().any(|x| x.is_object() || x.is_array()) => {
                    format!("{pad}{key}:\n{}", readable(v, depth + 1))
                }
                _ => format!("{pad}{key}: {}\n", scalar(v)),
            })
            .collect(),
        Value::Array(list) if list.is_empty() => format!("{pad}none\n"),
        Value::Array(list) => list
            .iter()
            .map(|v| match v {
                Value::Object(_) | Value::Array(_) => {
                    let text = readable(v, depth + 1);
                    format!("{pad}- {}", text.trim_start())
                }
                _ => format!("{pad}- {}\n", scalar(v)),
            })
            .collect(),
        _ => format!("{pad}{}\n", scalar(value)),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(scalar).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_nested_values_indented() {
        let text = readable(&serde_json::json!({"a": 1, "b": {"c": "x"}, "l": [{"d": 2}, {"d": 3}], "n": null}), 0);
        assert_eq!(text, "a: 1\nb:\n  c: x\nl:\n  - d: 2\n  - d: 3\n");
    }
}
