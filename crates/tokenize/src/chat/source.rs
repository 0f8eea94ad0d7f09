//! What is done to a template's text before the engine reads it.

/// The template with `generation` blocks as plain scopes. They mark what the assistant said, for training: they show
/// their content and nothing else.
pub(super) fn without_generation_blocks(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let Some(end) = tag.find("%}").map(|end| end + 2) else { break };
        let (tag, after) = tag.split_at(end);
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
        let name = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(before);
        match name {
            "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => {
                // Not a whole tag: it may hold the text `%}` in a string, after which another tag can begin.
                let (opening, inside) = tag.split_at(2);
                out.push_str(opening);
                rest = rest.get(start + 2..).unwrap_or_default();
                debug_assert!(rest.starts_with(inside));
                continue;
            }
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_scopes_with_the_same_trimming() {
        let source = "a{%- generation -%} x {%+generation%}{% if g == '%}' %}{% endgeneration +%}{%-endgeneration%}z{% b";
        let expected = "a{%- with -%} x {%+with%}{% if g == '%}' %}{% endwith +%}{%-endwith%}z{% b";
        assert_eq!(without_generation_blocks(source), expected);
        assert_eq!(without_generation_blocks("{% generation2 %}{{ '{%' }}"), "{% generation2 %}{{ '{%' }}");
    }
}
