//! Configuration by flag, then environment (`POLYLINK_…`), then one TOML file, then the built-in default.
//!
//! The file's tables bear the names of subcommands, its keys those of their long flags:
//!
//! ```toml
//! [up]
//! block-time-ms = 1000
//! [bench.serve]
//! concurrency = 32
//! ```
//!
//! It is `POLYLINK_HOME/polylink.toml` unless `--config` names another. It works by becoming the flags' defaults before
//! the command line is parsed, so that no subcommand needs to know of it; a key that no flag has is an error.

use clap::Command;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::Value;

use crate::error::CliError;

/// The file's name in the home directory.
pub const FILE_NAME: &str = "polylink.toml";

/// The value of a flag before the command line is parsed: `--name VALUE` or `--name=VALUE`.
fn early_flag(args: &[OsString], name: &str) -> Option<PathBuf> {
    let flag = format!("--{name}");
    args.iter().enumerate().find_map(|(at, arg)| {
        let text = arg.to_str()?;
        match text.strip_prefix(&flag)? {
            "" => args.get(at + 1).map(PathBuf::from),
            rest => rest.strip_prefix('=').map(PathBuf::from),
        }
    })
}

/// The state's directory: `--home`, `POLYLINK_HOME`, or `~/.polylink`.
pub fn home(args: &[OsString]) -> PathBuf {
    let from_env = || std::env::var_os("POLYLINK_HOME").filter(|h| !h.is_empty()).map(PathBuf::from);
    let user = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    early_flag(args, "home").or_else(from_env).unwrap_or_else(|| user().join(".polylink"))
}

/// The command with the file's values as defaults. A file that was named must exist; the default one may be absent.
pub fn with_file(command: Command, args: &[OsString]) -> Result<Command, CliError> {
    let named = early_flag(args, "config").or_else(|| std::env::var_os("POLYLINK_CONFIG").map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| home(args).join(FILE_NAME));
    if named.is_none() && !path.exists() {
        return Ok(command);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| CliError::file(&path, e))?;
    apply(command, &text, &path)
}

fn apply(command: Command, text: &str, path: &Path) -> Result<Command, CliError> {
    let table: toml::Table = text.parse().map_err(|e| CliError::file(path, format!("not TOML: {e}")))?;
    apply_table(command, &table, path)
}

fn apply_table(mut command: Command, table: &toml::Table, path: &Path) -> Result<Command, CliError> {
    for (key, value) in table {
        let wrong = |reason: String| CliError::file(path, format!("`{key}`: {reason}"));
        if let Value::Table(inner) = value {
            if command.find_subcommand(key).is_none() {
                return Err(wrong(format!("`{}` has no such subcommand", command.get_name())));
            }
            let mut result = Ok(());
            command = command.mut_subcommand(key, |sub| match apply_table(sub.clone(), inner, path) {
                Ok(applied) => applied,
                Err(error) => {
                    result = Err(error);
                    sub
                }
            });
            result?;
            continue;
        }
        let texts = texts(value).ok_or_else(|| wrong("a text, number, boolean or list of them is expected".into()))?;
        let Some(id) = command
            .get_arguments()
            .find(|a| a.get_long() == Some(key) && a.get_action().takes_values())
            .map(|a| a.get_id().clone())
        else {
            return Err(wrong(format!("`{}` has no option --{key} with a value", command.get_name())));
        };
        command = command.mut_arg(id, |arg| arg.default_values(texts).required(false));
    }
    Ok(command)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(truth) => Some(vec![truth.to_string()]),
        Value::Array(list) => list.iter().map(|v| texts(v).filter(|t| t.len() == 1).map(|mut t| t.remove(0))).collect(),
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn command() -> Command {
        let rate = || Arg::new("rate").long("rate").default_value("1");
        Command::new("polylink")
            .subcommand(Command::new("up").arg(rate()).arg(Arg::new("must").long("must").required(true)))
            .subcommand(Command::new("bench").subcommand(Command::new("serve").arg(rate().env("POLYLINK_TEST_RATE"))))
    }

    #[test]
    fn flag_beats_file_beats_default() {
        let file = "[up]\nrate = 5\nmust = 'x'\n[bench.serve]\nrate = 7";
        let parse = |args: &[&str]| apply(command(), file, Path::new("f")).unwrap().try_get_matches_from(args).unwrap();
        let up = parse(&["polylink", "up"]);
        assert_eq!(up.subcommand_matches("up").unwrap().get_one::<String>("rate").unwrap(), "5");
        let up = parse(&["polylink", "up", "--rate", "9"]);
        assert_eq!(up.subcommand_matches("up").unwrap().get_one::<String>("rate").unwrap(), "9");
        let bench = parse(&["polylink", "bench", "serve"]);
        let serve = bench.subcommand_matches("bench").unwrap().subcommand_matches("serve").unwrap();
        assert_eq!(serve.get_one::<String>("rate").unwrap(), "7");
    }

    #[test]
    fn unknown_keys_and_tables_are_named() {
        for (file, named) in
            [("[up]\nraet = 5", "raet"), ("[upp]\nrate = 5", "upp"), ("rate = [[1]]", "rate"), ("x", "TOML")]
        {
            let error = apply(command(), file, Path::new("f")).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn early_flags_in_both_spellings() {
        let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(early_flag(&args(&["up", "--home", "/a"]), "home"), Some("/a".into()));
        assert_eq!(early_flag(&args(&["up", "--home=/b"]), "home"), Some("/b".into()));
        assert_eq!(early_flag(&args(&["up", "--homer"]), "home"), None);
    }
}
