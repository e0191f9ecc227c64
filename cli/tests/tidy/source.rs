//! Rust sources as the style checks see them: comments, texts and test code blanked, every byte in its place, so that a
//! find in the blanked source is a place in the original.

/// Blanks comments (with spaces) and the insides of text and character literals (with `_`).
pub fn blanked(source: &str) -> Vec<u8> {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        if rest.starts_with(b"//") {
            at += fill(&mut out[at..], rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()), b' ');
        } else if rest.starts_with(b"/*") {
            at += fill(&mut out[at..], block_comment(rest), b' ');
        } else if let Some((inside, length)) = raw_text(rest).filter(|_| !word_before || rest[0] == b'"') {
            fill(&mut out[at + inside.start..], inside.len(), b'_');
            at += length;
        } else if let Some(length) = character(rest) {
            fill(&mut out[at + 1..], length - 2, b'_');
            at += length;
        } else {
            at += 1;
        }
    }
    out
}

/// Overwrites all but line ends; returns the length.
fn fill(out: &mut [u8], length: usize, with: u8) -> usize {
    out[..length].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = with);
    length
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// A text literal here, plain or raw: where its inside is, and the whole's length.
fn raw_text(rest: &[u8]) -> Option<(std::ops::Range<usize>, usize)> {
    if rest[0] == b'"' {
        let mut at = 1;
        while at < rest.len() && rest[at] != b'"' {
            at += if rest[at] == b'\\' { 2 } else { 1 };
        }
        let end = at.min(rest.len());
        return Some((1..end, (end + 1).min(rest.len())));
    }
    let start = if rest.starts_with(b"br") { 2 } else { usize::from(rest[0] == b'r') };
    let hashes = rest.iter().skip(start).take_while(|b| **b == b'#').count();
    if start == 0 || rest.get(start + hashes) != Some(&b'"') {
        return None;
    }
    let inside = start + hashes + 1;
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let length = rest[inside..].windows(close.len()).position(|w| w == close).unwrap_or(rest.len() - inside);
    Some((inside..inside + length, (inside + length + close.len()).min(rest.len())))
}

/// The length of a character literal here; lifetimes are none.
fn character(rest: &[u8]) -> Option<usize> {
    if rest[0] != b'\'' {
        return None;
    }
    let from = if rest.get(1) == Some(&b'\\') { 3 } else { 2 };
    // A character has at most four bytes, an escape at most ten (`\u{10ffff}`).
    let end = rest.iter().take(13).skip(from).position(|b| *b == b'\'')? + from;
    let escaped = rest[1] == b'\\';
    let single = std::str::from_utf8(&rest[1..end]).is_ok_and(|inside| inside.chars().count() == 1);
    (escaped || single).then_some(end + 1)
}

/// Blanks every item under `#[cfg(test)]`, wherever it stands, and nothing after it.
pub fn without_tests(mut code: Vec<u8>) -> Vec<u8> {
    const ATTRIBUTE: &[u8] = b"#[cfg(test)]";
    let mut from = 0;
    while let Some(at) = code[from..].windows(ATTRIBUTE.len()).position(|w| w == ATTRIBUTE) {
        let start = from + at;
        let end = item_end(&code, start + ATTRIBUTE.len());
        fill(&mut code[start..], end - start, b' ');
        from = end;
    }
    code
}

/// Where the item ends that begins here, further attributes before it included.
fn item_end(code: &[u8], from: usize) -> usize {
    const ITEMS: [&str; 11] = ["pub", "mod", "fn", "async", "impl", "struct", "enum", "use", "type", "const", "static"];
    let mut at = from;
    loop {
        at += code[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        if !code[at..].starts_with(b"#[") {
            break;
        }
        at = matching(code, at + 1);
    }
    let word: Vec<u8> = code[at..].iter().copied().take_while(u8::is_ascii_alphabetic).collect();
    let item = ITEMS.iter().any(|i| i.as_bytes() == word);
    while at < code.len() {
        match code[at] {
            b';' => return at + 1,
            b',' if !item => return at + 1,
            // A block is the end of an item, and of an expression or a match arm too.
            b'{' => return matching(code, at),
            b'(' | b'[' => at = matching(code, at),
            // The enclosing block ends: the last expression, field or arm of it.
            b'}' | b')' => return at,
            _ => at += 1,
        }
    }
    at
}

/// After the bracket that closes the one here.
fn matching(code: &[u8], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// What may not stand outside of tests: line and words.
pub fn faults(source: &str) -> Vec<(usize, String)> {
    const FORBIDDEN: [&str; 7] =
        [".unwrap()", ".unwrap_err()", ".expect_err(", "todo!(", "unimplemented!(", "dbg!(", "#![cfg(test)]"];
    const REASONED: [&str; 3] = [".expect(", "panic!(", "unreachable!("];
    let code = without_tests(blanked(source));
    let mut found = Vec::new();
    let mut places = |word: &str, wrong: &dyn Fn(usize) -> bool| {
        for (at, _) in code.windows(word.len()).enumerate().filter(|(_, w)| *w == word.as_bytes()) {
            if wrong(at + word.len()) {
                let line = code[..at].iter().filter(|b| **b == b'\n').count() + 1;
                found.push((line, word.to_owned()));
            }
        }
    };
    FORBIDDEN.iter().for_each(|word| places(word, &|_| true));
    REASONED.iter().for_each(|word| places(word, &|at| !is_reasoned(source, &code, at)));
    found.sort();
    found
}

/// Whether the arguments that begin here open with a reason: a text of three words, or one that shows a value.
/// Several arguments without a text are another function of the same name.
fn is_reasoned(source: &str, code: &[u8], at: usize) -> bool {
    let end = matching(code, at - 1);
    let inside = &code[at..end.saturating_sub(1).max(at)];
    let open = inside.iter().take_while(|b| b.is_ascii_whitespace()).count();
    if inside.get(open) != Some(&b'"') {
        return inside.contains(&b',');
    }
    let text = &source[at + open + 1..];
    let text = &text[..code[at + open + 1..].iter().position(|b| *b == b'"').unwrap_or(0)];
    text.split_whitespace().count() >= 3 || text.contains('{')
}

#[test]
fn faults_are_found_where_they_are() {
    let source = r##"
//! .unwrap() in a comment, /* .unwrap() */
const URL: &str = "http://x"; fn a() { b().unwrap() }
const TEXT: &str = ".unwrap() \" panic!("; const RAW: &str = r#"todo!(" .unwrap()"#;
fn quote<'a>(c: char) -> bool { c == '"' || c == '\'' || c == '{' }
fn c() { d().expect("") }
fn e() { f().expect("a reason of more words"); g().expect(name, shape); h().expect(name) }
fn i() { panic!(); unreachable!("no"); panic!("{reason}"); unreachable!("it was checked above") }
#[cfg(test)]
mod tests {
    fn j() { k().unwrap(); panic!() }
}
fn after() { l().unwrap() }
#[cfg(test)]
#[path = "x.rs"]
mod x;
fn after_too() { dbg!(1); m().expect_err("n"); o
    .expect(
        "a reason on the next line",
    ) }
struct P { #[cfg(test)] q: [u8; 3], r: u8 }
fn last() { todo!() }
"##;
    let found: Vec<(usize, String)> = faults(source);
    let found: Vec<(usize, &str)> = found.iter().map(|(line, word)| (*line, word.as_str())).collect();
    let expected = [
        (3, ".unwrap()"),
        (6, ".expect("),
        (7, ".expect("),
        (8, "panic!("),
        (8, "unreachable!("),
        (13, ".unwrap()"),
        (17, ".expect_err("),
        (17, "dbg!("),
        (22, "todo!("),
    ];
    assert_eq!(found, expected);
}
