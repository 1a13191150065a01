//! `cargo xtask record`: a terminal's output on standard input, as an SVG
//! picture on standard output. Makes docs/demo.svg of what `make demo` prints.

use std::fmt::Write as _;
use std::io::Read;

use anyhow::Result;

/// Longest line that is drawn whole.
const COLUMNS: usize = 110;
const LINE: usize = 17;

/// Draws standard input.
pub fn run() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    println!("{}", draw(&text));
    Ok(())
}

fn draw(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    let (width, height) = (COLUMNS * 8 + 30, lines.len() * LINE + 30);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#1e1e1e\"/>\n"
    );
    for (index, line) in lines.iter().enumerate() {
        let plain = without_escapes(line);
        let colour = if plain.starts_with("$ ") { "#8fd18f" } else { "#d4d4d4" };
        let mut shown: String = plain.chars().take(COLUMNS).collect();
        if plain.chars().count() > COLUMNS {
            shown.push('…');
        }
        let shown = shown.replace('&', "&amp;").replace('<', "&lt;");
        let y = 26 + index * LINE;
        let _ = writeln!(
            svg,
            "<text x=\"14\" y=\"{y}\" fill=\"{colour}\" xml:space=\"preserve\">{shown}</text>"
        );
    }
    svg.push_str("</svg>");
    svg
}

/// `line` without its ANSI escape sequences and carriage returns.
fn without_escapes(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                // CSI: up to its final letter.
                let _ = characters.by_ref().find(|c| c.is_ascii_alphabetic());
            }
            '\r' => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_dropped_and_markup_is_quoted() {
        let svg = draw("\u{1b}[1;32m$\u{1b}[0;1m ls <a>\u{1b}[0m\r\n");
        assert!(svg.contains(">$ ls &lt;a></text>"), "{svg}");
    }
}
