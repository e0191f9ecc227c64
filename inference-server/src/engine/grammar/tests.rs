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
    for text in [
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
                println!(
                    "{} ms, {} tokens, ended {ended}, stuck {}: {text}",
                    begun.elapsed().as_millis(),
                    ids.len(),
                    state.is_stuck()
                );
            }
            Err(error) => println!("{} ms: {text}: {error}", begun.elapsed().as_millis()),
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
