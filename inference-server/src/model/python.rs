//! What templates written for Jinja expect of Python: how values print, `json.dumps`, `strftime`.

use std::fmt::Write;

use minijinja::Value;
use minijinja::value::{Kwargs, ValueKind};

/// Most nested lists and objects that are printed.
const DEPTH_MAX: usize = 64;

fn too_deep() -> minijinja::Error {
    minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, format!("values nest deeper than {DEPTH_MAX}"))
}

/// `str(value)`: `True`, `None`, lists and objects by `repr`.
pub(super) fn text(value: &Value) -> Result<String, minijinja::Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Map => repr(value, 0),
        ValueKind::Number => Ok(number(value, false)),
        _ => Ok(value.to_string()),
    }
}

fn repr(value: &Value, depth: usize) -> Result<String, minijinja::Error> {
    if depth > DEPTH_MAX {
        return Err(too_deep());
    }
    Ok(match value.kind() {
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::None => "None".into(),
        ValueKind::Number => number(value, false),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items = value.try_iter()?.map(|item| repr(&item, depth + 1)).collect::<Result<Vec<_>, _>>()?;
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let items = value.try_iter()?.map(|key| {
                let item = value.get_item(&key)?;
                Ok(format!("{}: {}", repr(&key, depth + 1)?, repr(&item, depth + 1)?))
            });
            format!("{{{}}}", items.collect::<Result<Vec<_>, minijinja::Error>>()?.join(", "))
        }
        _ => value.to_string(),
    })
}

/// `repr` of a text: single quotes, unless there are only such in it.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() || c == '\u{7f}' => push(&mut out, format_args!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a text cannot fail.
    let _ = out.write_fmt(text);
}

/// A number as Python prints it: whole ones as they are, others by the fewest digits that tell them apart, with an
/// exponent below 1e-4 and from 1e16 on.
fn number(value: &Value, json: bool) -> String {
    let shown = value.to_string();
    let is_float = !value.is_integer();
    let Some(float) = f64::try_from(value.clone()).ok().filter(|_| is_float) else { return shown };
    if !float.is_finite() {
        let name = if float.is_nan() { ["nan", "NaN"] } else { ["inf", "Infinity"] }[usize::from(json)];
        return if float < 0.0 { format!("-{name}") } else { name.into() };
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = float.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// The filter `tojson` as transformers defines it: `json.dumps` with `ensure_ascii`, `indent`, `separators`, `sort_keys`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = match options.get::<Option<Value>>("indent")? {
        Some(value) if !value.is_none() => Some(usize::try_from(value)?.min(32)),
        _ => None,
    };
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(value) if !value.is_none() => {
            let text = |index| value.get_item_by_index(index).map(|part| part.to_string());
            Some((text(0)?, text(1)?))
        }
        _ => None,
    };
    let default = (if indent.is_some() { "," } else { ", " }, ": ");
    let (item, key) = separators.unwrap_or((default.0.into(), default.1.into()));
    let json = Json {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    json.write(value, 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

struct Json {
    ascii: bool,
    sorted: bool,
    indent: Option<usize>,
    item: String,
    key: String,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), minijinja::Error> {
        if depth > DEPTH_MAX {
            return Err(too_deep());
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value, true)),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort_by_key(ToString::to_string);
                }
                out.push('{');
                for (i, key) in keys.iter().enumerate() {
                    self.next(i == 0, depth, out);
                    self.string(&key.to_string(), out);
                    out.push_str(&self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)?;
                }
                self.end(keys.is_empty(), depth, out);
                out.push('}');
            }
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.next(empty, depth, out);
                    empty = false;
                    self.write(&item, depth + 1, out)?;
                }
                self.end(empty, depth, out);
                out.push(']');
            }
            _ => self.string(&value.to_string(), out),
        }
        Ok(())
    }

    fn next(&self, first: bool, depth: usize, out: &mut String) {
        if !first {
            out.push_str(&self.item);
        }
        self.line(depth + 1, out);
    }

    fn end(&self, empty: bool, depth: usize, out: &mut String) {
        if !empty {
            self.line(depth, out);
        }
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && (c as u32) > 0x7e) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        push(out, format_args!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `strftime` of a Unix time, in UTC and English; a directive that is not known stays as it is.
pub(super) fn strftime(format: &str, unix_seconds: u64) -> String {
    let days = (unix_seconds / 86_400) as i64;
    let (second, minute, hour) = (unix_seconds % 60, unix_seconds / 60 % 60, unix_seconds / 3_600 % 24);
    let (year, month, day) = civil(days);
    let day_of_year = days - days_before(year) + 1;
    let weekday = (days + 4).rem_euclid(7) as usize;
    let hour_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[weekday]);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = rest.next();
        let bare = directive == Some('-');
        if bare {
            directive = rest.next();
        }
        let width = |width: usize| if bare { 0 } else { width };
        let (two, three) = (width(2), width(3));
        match directive {
            Some('Y') => push(&mut out, format_args!("{year}")),
            Some('y') => push(&mut out, format_args!("{:0two$}", year % 100)),
            Some('m') => push(&mut out, format_args!("{month:0two$}")),
            Some('d') => push(&mut out, format_args!("{day:0two$}")),
            Some('e') => push(&mut out, format_args!("{day:two$}")),
            Some('j') => push(&mut out, format_args!("{day_of_year:0three$}")),
            Some('H') => push(&mut out, format_args!("{hour:0two$}")),
            Some('I') => push(&mut out, format_args!("{hour_12:0two$}")),
            Some('M') => push(&mut out, format_args!("{minute:0two$}")),
            Some('S') => push(&mut out, format_args!("{second:0two$}")),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('F') => push(&mut out, format_args!("{year}-{month:02}-{day:02}")),
            Some('T') => push(&mut out, format_args!("{hour:02}:{minute:02}:{second:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                out.extend(other);
            }
        }
    }
    out
}

/// Days from 1970-01-01 to the first day of a year.
fn days_before(year: i64) -> i64 {
    let before = year - 1;
    365 * (year - 1970) + (before / 4 - before / 100 + before / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

/// Year, month and day of a number of days since 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let leap = days_before(year + 1) - days_before(year) == 366;
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut day = days - days_before(year);
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_in_python() {
        for (value, shown) in [
            (0.1, "0.1"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_012, "1.2e-05"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(number(&Value::from(value), false), shown);
        }
        assert_eq!(number(&Value::from(12), true), "12");
        assert_eq!(
            text(&Value::from_serialize(serde_json::json!({"a": [true, null, "x'y", 1.0]}))).unwrap(),
            "{'a': [True, None, \"x'y\", 1.0]}"
        );
    }

    #[test]
    fn times_are_written_as_strftime_does() {
        // As Python's datetime.fromtimestamp(…, UTC).strftime writes them.
        for (unix, format, text) in [
            (0, "%d %b %Y %H:%M:%S %A", "01 Jan 1970 00:00:00 Thursday"),
            (951_782_400, "%d %B %Y (%j)", "29 February 2000 (060)"),
            (1_735_689_599, "%F %T %p %I", "2024-12-31 23:59:59 PM 11"),
            (1_735_689_600, "%-d/%-m/%y %a %%", "1/1/25 Wed %"),
            (4_107_542_399, "%d %b %Y", "28 Feb 2100"),
            (4_107_542_400, "%d %b %Y", "01 Mar 2100"),
            (1_700_000_000, "%Q %", "%Q %"),
        ] {
            assert_eq!(strftime(format, unix), text, "{unix}");
        }
    }
}
