//! Tables of offers and of what models say.

use super::*;

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}})
}

fn read(body: Value) -> Result<Option<Tools>, ApiError> {
    tools(&mut Fields::parse(body.to_string().as_bytes()).unwrap())
}

#[test]
fn offers_and_choices_are_read_or_named() {
    for (choice, expected) in [
        (json!(null), Some(ToolChoice::Auto)),
        (json!("auto"), Some(ToolChoice::Auto)),
        (json!("none"), None),
        (json!("required"), Some(ToolChoice::Required)),
        (json!({"type": "function", "function": {"name": "b"}}), Some(ToolChoice::Named("b".into()))),
    ] {
        let found = read(json!({"tools": [tool("a"), tool("b")], "tool_choice": choice})).unwrap();
        assert_eq!(found.map(|tools| tools.choice), expected);
    }
    assert_eq!(read(json!({"tools": [], "tool_choice": "auto"})).unwrap(), None);
    for (body, param) in [
        (json!({"tools": "a"}), "tools"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0]"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0]"),
        (json!({"tools": [tool("a"), tool("a")]}), "tools[1]"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}),
            "tools[0].function.parameters",
        ),
        (json!({"tools": [tool("a")], "tool_choice": "maybe"}), "tool_choice"),
        (json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "z"}}}), "tool_choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"parallel_tool_calls": 1}), "parallel_tool_calls"),
    ] {
        let error = read(body.clone()).expect_err(&body.to_string());
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
    }
}

/// However the text is cut, what is shown and what is called is the same.
#[test]
fn calls_are_found_in_what_models_say() {
    let offered = Tools { list: vec![tool("a"), tool("b")], choice: ToolChoice::Auto, parallel: true };
    let call = |name: &str, arguments: &str| ToolCall { name: name.into(), arguments: arguments.into() };
    for (dialect, said, text, calls) in [
        (Dialect::Tagged, "hello <tool", "hello <tool", vec![]),
        (
            Dialect::Tagged,
            "I look.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"z\": 1, \"a\": \"<é>\"}}\n</tool_call>",
            "I look.\n",
            vec![call("a", "{\"z\":1,\"a\":\"<é>\"}")],
        ),
        (
            Dialect::Tagged,
            "<tool_call>{\"name\": \"a\", \"arguments\": {}}</tool_call>\n<tool_call>{\"name\": \"b\"}</tool_call>",
            "",
            vec![call("a", "{}"), call("b", "{}")],
        ),
        (
            Dialect::Tagged,
            "<tool_call>{\"name\": \"c\"}</tool_call>",
            "<tool_call>{\"name\": \"c\"}</tool_call>",
            vec![],
        ),
        (Dialect::Tagged, "x <tool_call>{\"name\": ", "x <tool_call>{\"name\": ", vec![]),
        (Dialect::Bare, "{\"name\": \"b\", \"parameters\": {\"x\": 2}}", "", vec![call("b", "{\"x\":2}")]),
        (
            Dialect::Bare,
            "\n[{\"name\": \"a\", \"parameters\": {}}, {\"name\": \"b\", \"parameters\": {}}]",
            "",
            vec![call("a", "{}"), call("b", "{}")],
        ),
        (Dialect::Bare, "{\"name\": \"a\"}; {\"name\": \"b\"}", "", vec![call("a", "{}"), call("b", "{}")]),
        (Dialect::Bare, "It is {\"name\": \"a\"}", "It is {\"name\": \"a\"}", vec![]),
        (Dialect::Bare, "{\"temperature\": 20}", "{\"temperature\": 20}", vec![]),
    ] {
        for size in [1, 2, 5, said.len()] {
            let mut reader = offered.reader(dialect);
            let characters: Vec<char> = said.chars().collect();
            let mut shown: String =
                characters.chunks(size).map(|c| reader.push(&c.iter().collect::<String>())).collect();
            let (rest, found) = reader.finish();
            shown.push_str(&rest);
            assert_eq!((shown.as_str(), &found), (text, &calls), "{said:?} in pieces of {size}");
        }
    }
    let mut one = Tools { parallel: false, ..offered }.reader(Dialect::Bare);
    one.push("[{\"name\": \"a\"}, {\"name\": \"b\"}]");
    assert_eq!(one.finish().1.len(), 1);
}

#[test]
fn a_call_that_has_to_be_is_a_grammar() {
    let mut tools = Tools { list: vec![tool("a"), tool("b")], choice: ToolChoice::Auto, parallel: true };
    assert_eq!(tools.grammar(Dialect::Bare), None);
    tools.choice = ToolChoice::Named("b".into());
    let named = tools.grammar(Dialect::Bare).unwrap();
    assert!(
        named.starts_with("json:{\"type\":\"object\",\"properties\":{\"name\":{\"const\":\"b\"},\"parameters\""),
        "{named}"
    );
    tools.choice = ToolChoice::Required;
    let tagged = tools.grammar(Dialect::Tagged).unwrap();
    assert!(tagged.starts_with("lark:start: \"<tool_call>\\n\" call") && tagged.contains("anyOf"), "{tagged}");
}
