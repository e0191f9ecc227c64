use super::*;

#[test]
fn overlap_is_the_longest_possible_beginning_of_a_stop_text() {
    for (text, stop, expected) in [
        ("ab", "abc", 2),
        ("xa", "abc", 1),
        ("abc", "abcd", 3),
        ("x", "abc", 0),
        ("aa", "aab", 2),
        ("é", "éa", 2),
        ("", "a", 0),
    ] {
        assert_eq!(overlap(text, stop), expected, "{text:?} {stop:?}");
    }
}
