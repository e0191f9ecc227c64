//! Grammars over the vocabulary of the project's own model: what they let through, what they refuse, and that masks are a
//! pure function of what was drawn.

use std::path::PathBuf;

use super::*;
use crate::model::Precision;

fn model() -> LoadedModel {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/pico");
    LoadedModel::open(folder, Precision::F32).unwrap()
}

/// Draws allowed tokens by a fixed sequence of numbers, as a model without any sense would.
fn wander(state: &mut GrammarState, end_tokens: &[u32], seed: u64, tokens_max: usize) -> (Vec<u32>, bool) {
    let (mut ids, mut number) = (Vec::new(), seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    while ids.len() < tokens_max {
        let mask = state.mask(&[]);
        let allowed: Vec<u32> = (0..mask.len() as u32 * 32).filter(|token| is_set(mask, *token)).collect();
        assert!(!allowed.is_empty(), "something may always be drawn");
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = allowed[(number >> 33) as usize % allowed.len()];
        ids.push(token);
        if end_tokens.contains(&token) {
            return (ids, true);
        }
        state.accept(token);
    }
    (ids, false)
}

fn texts(grammars: &Grammars, model: &LoadedModel, text: &str, runs: u64) -> Vec<String> {
    let first = grammars.compile(text).unwrap();
    let run = |seed| {
        let mut state = first.separate();
        let (ids, ended) = wander(&mut state, model.end_tokens(), seed, 400);
        (ended && !state.is_stuck()).then(|| model.tokenizer().decode(&ids))
    };
    (0..runs).filter_map(run).collect()
}

#[test]
fn whatever_is_drawn_matches_the_expression() {
    let (model, grammars) = (model(), Grammars::of(&model()));
    let whole = |found: &str, digits: usize, letters: &str| {
        found.chars().take(digits).all(|c| c.is_ascii_digit()) && letters.contains(found.chars().last().unwrap())
    };
    let found = texts(&grammars, &model, r"regex:^[0-9]{3}-[xyz]$", 30);
    assert_eq!(found.len(), 30);
    assert!(found.iter().all(|text| text.len() == 5 && whole(text, 3, "xyz")), "{found:?}");
    let found = texts(&grammars, &model, "regex:(yes|no|perhaps)", 60);
    assert!(["yes", "no", "perhaps"].iter().all(|text| found.iter().any(|f| f == text)), "{found:?}");
    // Characters of several bytes, which the vocabulary spells by single ones.
    let found = texts(&grammars, &model, "regex:[äöü€😀]{4}", 30);
    assert!(
        found.iter().all(|text| text.chars().count() == 4 && text.chars().all(|c| "äöü€😀".contains(c))),
        "{found:?}"
    );
    let found = texts(&grammars, &model, "lark:start: \"(\" start \")\" | \"x\"", 30);
    assert!(found.iter().any(|text| text.len() > 1));
    for text in &found {
        let depth = text.len() / 2;
        assert_eq!(*text, format!("{}x{}", "(".repeat(depth), ")".repeat(depth)));
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_with_a_reason() {
    let grammars = Grammars::of(&model());
    let deep = format!("regex:{}a{}", "(".repeat(2_000), ")".repeat(2_000));
    let tall = format!("json:{}true{}", "{\"items\":".repeat(300), "}".repeat(300));
    for text in [
        "",
        "json",
        "xml:<a/>",
        "json:{",
        "json:[]",
        "json:false",
        "json:{\"type\":\"strange\"}",
        "json:{\"oneOf\":[{\"type\":\"string\"},{\"minLength\":1}]}",
        "json:{\"$ref\":\"https://example.org/schema\"}",
        "json:{\"type\":\"string\",\"pattern\":\"(\"}",
        "json:{\"type\":\"integer\",\"minimum\":3,\"maximum\":1}",
        "regex:(",
        "regex:a(?=b)",
        "regex:(a)\\1",
        "lark:nothing",
        "lark:start: undefined",
        "lark:start: <|end|>",
        deep.as_str(),
        tall.as_str(),
    ] {
        let begun = std::time::Instant::now();
        let error = grammars.compile(text).map(drop).expect_err(&text.chars().take(60).collect::<String>());
        println!("{} ms: {:.60}: {error}", begun.elapsed().as_millis(), text);
        assert!(error.to_string().len() > 5 && !error.to_string().contains("backtrace"), "{text}: {error}");
        assert!(error.to_string().chars().count() <= REASON_CHARS_MAX);
    }
    assert_eq!(
        grammars.compile(&"x".repeat(GRAMMAR_BYTES_MAX + 1)).map(drop),
        Err(GrammarError::TooLong { bytes: 65_537 })
    );
}

/// Expressions whose automata would be huge: each token's work is bounded, and what cannot go on ends.
#[test]
fn hostile_expressions_end_and_do_not_grow() {
    let (model, grammars) = (model(), Grammars::of(&model()));
    let wide = format!("json:{{\"enum\":[{}]}}", (0..9_000).map(|i| i.to_string()).collect::<Vec<_>>().join(","));
    let nested = (0..12).fold("a".to_owned(), |inner, _| format!("({inner}|b{{0,99}}){{0,99}}"));
    let doubled =
        (0..40).fold("start: n0\nn40: \"x\"\n".to_owned(), |text, i| format!("{text}n{i}: n{0} n{0}\n", i + 1));
    for text in [
        wide.as_str(),
        format!("regex:{nested}").as_str(),
        format!("lark:{doubled}").as_str(),
        "regex:[a-z]{0,1000000000}",
        "json:{\"type\":\"array\",\"items\":{\"type\":\"object\"},\"minItems\":1000000000}",
        "json:{\"type\":\"string\",\"minLength\":1000000000}",
        "json:{\"type\":\"integer\",\"multipleOf\":1000000007}",
        "regex:((a{1,1000}){1,1000}){1,1000}",
        "regex:(.*a.{0,40}b)*c{0,500}",
        "regex:(a|aa|aaa|ab|abb)*(b|a){400}",
        "lark:start: a a a a a a\na: \"x\" | a a | \"\"",
        r#"json:{"type":"object","patternProperties":{"^(a|b)*c{1,50}$":{"type":"string","pattern":"^(x+x+)+y$"}}}"#,
    ] {
        let begun = std::time::Instant::now();
        match grammars.compile(text) {
            Ok(mut state) => {
                let (ids, ended) = wander(&mut state, model.end_tokens(), 3, 50);
                let (tokens, stuck, ms) = (ids.len(), state.is_stuck(), begun.elapsed().as_millis());
                println!("{ms} ms, {tokens} tokens, ended {ended}, stuck {stuck}: {text:.60}");
            }
            Err(error) => println!("{} ms: {text:.60}: {error}", begun.elapsed().as_millis()),
        }
    }
}

#[test]
fn masks_are_a_function_of_what_was_drawn() {
    let model = model();
    let text =
        r#"json:{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"array","items":{"type":"number"}}}}"#;
    let (one, other) = (Grammars::of(&model), Grammars::of(&model));
    for seed in 0..4 {
        let (ids, _) = wander(&mut one.compile(text).unwrap(), model.end_tokens(), seed, 60);
        // Compiled anew and compiled before, after other runs and before them.
        let mut states =
            [one.compile(text).unwrap(), other.compile(text).unwrap(), Grammars::of(&model).compile(text).unwrap()];
        for &token in &ids {
            let masks = states.each_mut().map(|state| state.mask(&[]).to_vec());
            assert!(masks[0] == masks[1] && masks[1] == masks[2]);
            assert!(is_set(&masks[0], token));
            states.iter_mut().for_each(|state| state.accept(token));
        }
    }
}

#[test]
fn a_grammar_that_is_over_or_stuck_leaves_the_end_tokens_alone() {
    let model = model();
    let grammars = Grammars::of(&model);
    let only_ends = |mask: &[u32]| {
        let set: Vec<u32> = (0..mask.len() as u32 * 32).filter(|token| is_set(mask, *token)).collect();
        set == model.end_tokens()
    };
    let mut state = grammars.compile("regex:a").unwrap();
    let a = model.tokenizer().token_id("a").unwrap();
    let mask = state.mask(&[]).to_vec();
    assert!(is_set(&mask, a) && mask.iter().map(|w| w.count_ones()).sum::<u32>() == 1);
    state.accept(a);
    // Held back in vain: nothing else is left.
    assert!(only_ends(state.mask(model.end_tokens())) && !state.is_stuck());
    // A token that does not fit (in a forged transcript).
    let mut state = grammars.compile("regex:a+").unwrap();
    state.mask(&[]);
    state.accept(model.tokenizer().token_id("b").unwrap());
    assert!(state.is_stuck() && only_ends(state.mask(&[])));
    // In a place where the answer may end and may go on, the ends can be held back.
    let mut state = grammars.compile("regex:a+").unwrap();
    state.mask(&[]);
    state.accept(a);
    let free = state.mask(&[]).to_vec();
    assert!(model.end_tokens().iter().all(|end| is_set(&free, *end)) && is_set(&free, a));
}

/// A vocabulary as large as those of real models: what a mask costs there is printed.
#[test]
fn a_large_vocabulary_is_masked_like_a_small_one() {
    let mut vocabulary = serde_json::Map::new();
    let bytes = (0x21..=0x7e_u32).chain(0xa1..=0xac).chain(0xae..=0xff).chain(0x100..=0x143);
    let letters = || (b'a'..=b'z').map(char::from);
    let words = letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| format!("{a}{b}{c}"))));
    let words: Vec<String> = words.collect();
    let pieces = bytes.filter_map(char::from_u32).map(String::from);
    let forms = ["", "\u{120}", "\"", "e", "in"]
        .into_iter()
        .flat_map(|before| words.iter().map(move |word| format!("{before}{word}")));
    for piece in pieces.chain(forms).chain(["<|end|>".to_owned()]) {
        let id = vocabulary.len();
        vocabulary.entry(piece).or_insert(json!(id));
    }
    let (size, end) = (vocabulary.len(), vocabulary["<|end|>"].clone());
    let added = json!([{"id": end, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let tokenizer = json!({"version": "1.0", "added_tokens": added, "decoder": {"type": "ByteLevel", "add_prefix_space": true,
        "trim_offsets": true, "use_regex": true}, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
    std::fs::write(file.path(), tokenizer.to_string()).unwrap();
    let grammars = Grammars {
        tokenizer: Arc::new(Tokenizer::open(file.path()).unwrap()),
        end_tokens: [end.as_u64().unwrap() as u32].into(),
        vocabulary: size,
        factory: OnceLock::new(),
        compiled: Mutex::default(),
    };
    let timed =
        |what: &str, begun: std::time::Instant| println!("{what}: {:.2} ms", begun.elapsed().as_secs_f64() * 1e3);
    let begun = std::time::Instant::now();
    let schema = r#"json:{"type":"object","properties":{"name":{"type":"string"},"tags":{"type":"array","items":{"enum":["red","green"]}}},"required":["name"]}"#;
    let mut state = grammars.compile(schema).unwrap();
    timed(&format!("{size} tokens, first grammar"), begun);
    let begun = std::time::Instant::now();
    drop(grammars.compile("regex:[a-z ]+[0-9]{3}").unwrap());
    timed("second grammar", begun);
    let mut inside = 0;
    for character in "{\"name\":\"abc def\",\"tags\":[\"red\"]}".chars() {
        let token = grammars
            .tokenizer
            .token_id(&if character == ' ' { "\u{120}".into() } else { character.to_string() })
            .unwrap();
        let begun = std::time::Instant::now();
        let mask = state.mask(&[]);
        assert!(is_set(mask, token), "{character}");
        let allowed: u32 = mask.iter().map(|word| word.count_ones()).sum();
        timed(&format!("before {character:?}, {allowed} allowed"), begun);
        inside = inside.max(allowed);
        state.accept(token);
    }
    assert!(inside > 60_000 && !state.is_stuck(), "within a text most tokens are allowed: {inside}");
    assert!(is_set(state.mask(&[]), end.as_u64().unwrap() as u32));
}
