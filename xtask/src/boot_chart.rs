//! `cargo xtask boot-chart < LOG`: where the guest kernel's boot time goes.
//!
//! LOG is a kernel log with times, best with `initcall_debug` on the command
//! line. The kernel has no symbol table of its own (no kallsyms), so addresses
//! are looked up in `build/kernel/System.map`.

use std::fs;
use std::io::Read;

use anyhow::{Context, Result, bail};

use crate::paths::Tree;

/// Options of `cargo xtask boot-chart`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many lines of each table
    #[arg(long, default_value_t = 20)]
    pub lines: usize,
}

/// Symbols in the order of their addresses.
struct Symbols(Vec<(u64, String)>);

impl Symbols {
    fn parse(map: &str) -> Self {
        let mut symbols: Vec<(u64, String)> = map
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                Some((address, words.nth(1)?.to_owned()))
            })
            .collect();
        symbols.sort();
        Self(symbols)
    }

    /// `0xffffffff81234560` or `name+0x0/0x10` as a name.
    fn name<'a>(&'a self, text: &'a str) -> &'a str {
        let plain = text.split(['+', '/']).next().unwrap_or(text);
        let Some(Ok(address)) = plain.strip_prefix("0x").map(|hex| u64::from_str_radix(hex, 16))
        else {
            return plain;
        };
        let after = self.0.partition_point(|(start, _)| *start <= address);
        after.checked_sub(1).map_or(plain, |index| &self.0[index].1)
    }
}

/// One line of the log: seconds since the kernel's start, and the text.
fn lines(log: &str) -> impl Iterator<Item = (f64, &str)> {
    log.lines().filter_map(|line| {
        let (_, rest) = line.split_once('[')?;
        let (time, text) = rest.split_once(']')?;
        Some((time.trim().parse().ok()?, text.trim()))
    })
}

/// Initcalls with the microseconds that each took.
fn initcalls<'a>(log: &'a str, symbols: &'a Symbols) -> Vec<(f64, &'a str)> {
    lines(log)
        .filter_map(|(_, text)| {
            let words: Vec<&str> = text.split_whitespace().collect();
            match words[..] {
                ["initcall", call, "returned", _, "after", time, "usecs"] => {
                    Some((time.parse().ok()?, symbols.name(call)))
                }
                _ => None,
            }
        })
        .collect()
}

/// The silent stretches of the log, and what was written after each.
fn gaps(log: &str) -> Vec<(f64, f64, &str)> {
    let mut before = 0.0;
    lines(log)
        .map(|(time, text)| {
            let gap = (time - before) * 1e6;
            before = time;
            (gap, time, text)
        })
        .collect()
}

/// Reads the log from standard input and prints both tables.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let log = String::from_utf8_lossy(&bytes);
    let map = tree.build("kernel/System.map");
    let map = fs::read_to_string(&map)
        .with_context(|| format!("cannot read {}; run `cargo xtask kernel`", map.display()))?;
    let symbols = Symbols::parse(&map);

    let mut gaps = gaps(&log);
    if gaps.is_empty() {
        bail!("no kernel log with times on standard input");
    }
    let total = gaps.last().map_or(0.0, |gap| gap.1);
    gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("{:.1} ms in all; before which line it was silent:", total * 1e3);
    for (gap, time, text) in gaps.iter().take(options.lines) {
        println!("{gap:>10.0} us  at {time:.6}  {text:.80}");
    }

    let mut calls = initcalls(&log, &symbols);
    calls.sort_by(|a, b| b.0.total_cmp(&a.0));
    let sum: f64 = calls.iter().map(|call| call.0).sum();
    println!("\n{} initcalls, {:.1} ms:", calls.len(), sum / 1e3);
    for (time, name) in calls.iter().take(options.lines) {
        println!("{time:>10.0} us  {name}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
<6>[    0.001000] Zone ranges:
<7>[    0.004500] initcall 0xffffffff81000010 returned 0 after 2500 usecs
[    0.005000] initcall known+0x0/0x20 returned -19 after 400 usecs
no time here
";

    #[test]
    fn initcalls_are_named_by_the_nearest_symbol_below() {
        let symbols = Symbols::parse("ffffffff81000000 t first_init\nffffffff81000020 T other\n");
        assert_eq!(initcalls(LOG, &symbols), [(2500.0, "first_init"), (400.0, "known")]);
    }

    #[test]
    fn a_gap_belongs_to_the_line_after_it() {
        let gaps = gaps(LOG);
        assert_eq!(gaps.len(), 3);
        assert_eq!((gaps[1].0.round(), gaps[1].1), (3500.0, 0.0045));
    }
}
