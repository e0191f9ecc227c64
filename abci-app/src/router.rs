//! Where messages and queries go: one table, made from the modules' own.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::error::TxError;
use crate::modules::{MODULES, MessageRoute, QueryRoute};

static MESSAGES: LazyLock<BTreeMap<String, (&'static str, &'static MessageRoute)>> = LazyLock::new(|| {
    let routes = MODULES.iter().flat_map(|module| module.messages.iter().map(move |route| (module.name, route)));
    routes.map(|(module, route)| (route.type_url(), (module, route))).collect()
});

static QUERIES: LazyLock<BTreeMap<String, &'static QueryRoute>> =
    LazyLock::new(|| MODULES.iter().flat_map(|module| module.queries).map(|route| (route.path(), route)).collect());

/// The route of a message by its type URL.
pub fn message(type_url: &str) -> Option<&'static MessageRoute> {
    MESSAGES.get(type_url).map(|(_, route)| *route)
}

/// The name of the module that handles a message.
pub fn module_of(type_url: &str) -> Option<&'static str> {
    MESSAGES.get(type_url).map(|(module, _)| *module)
}

/// The route of a query by its ABCI path.
pub fn query(path: &str) -> Option<&'static QueryRoute> {
    QUERIES.get(path).copied()
}

/// All type URLs that are executed, sorted.
pub fn type_urls() -> impl Iterator<Item = &'static str> {
    MESSAGES.keys().map(String::as_str)
}

/// All query paths, sorted.
pub fn query_paths() -> impl Iterator<Item = &'static str> {
    QUERIES.keys().map(String::as_str)
}

/// The refusal of a message without a route: whether it is known and not built, or not known at all.
pub fn refuse(type_url: &str) -> TxError {
    let shown: String = type_url.chars().take(128).flat_map(char::escape_debug).collect();
    let known = MODULES.iter().any(|module| module.refused.contains(&type_url));
    if known || type_url.starts_with("/cosmos.") {
        TxError::UnknownRequest(format!("not built yet: {shown}"))
    } else {
        TxError::UnknownRequest(format!("unknown message type {shown}: this ledger executes none of that name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tx::schema;

    #[test]
    fn every_route_stands_once_and_has_a_schema() {
        let routes: usize = MODULES.iter().map(|module| module.messages.len()).sum();
        assert_eq!(type_urls().count(), routes, "two routes have one type URL");
        let queries: usize = MODULES.iter().map(|module| module.queries.len()).sum();
        assert_eq!(query_paths().count(), queries, "two queries have one path");
        let mut amino = std::collections::BTreeSet::new();
        for type_url in type_urls() {
            assert!(schema::of(schema::full_name(type_url)).is_some(), "{type_url} has no schema: unknown fields pass");
            let name = message(type_url).map(|route| route.amino_name).unwrap_or_default();
            // Ledger hardware shows the amino name and refuses longer ones.
            assert!(!name.is_empty() && name.len() < 40, "{type_url}: amino name `{name}`");
            assert!(amino.insert(name), "{name} names two messages");
        }
    }

    #[test]
    fn refusals_name_the_message() {
        for (url, text) in [
            ("/cosmos.authz.v1beta1.MsgGrant", "not built yet: /cosmos.authz.v1beta1.MsgGrant"),
            ("/cosmos.group.v1.MsgVote", "not built yet: /cosmos.group.v1.MsgVote"),
            ("/foo.Bar", "unknown message type /foo.Bar"),
        ] {
            let error = refuse(url);
            assert_eq!(error.code(), ("sdk", 6));
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
