//! What the throw-away host is told to do: two small shell files in its
//! initial file system.

use anyhow::{Context, Result, bail};

use super::artifacts::HostKernel;
use super::{CgroupChoice, Options};
use crate::paths::Tree;

/// Variables of the caller that the command sees as well.
const PASSED_ON: [&str; 12] = [
    "HOME",
    "LANG",
    "TERM",
    "USER",
    "SHELL",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "CARGO_TARGET_DIR",
    "NO_COLOR",
    "CI",
];
/// The directories behind ours on PATH.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Settings for stage2.sh, in shell syntax.
pub fn configuration(kernel: &HostKernel, options: &Options) -> String {
    format!(
        "kernel={}\nmodules_dir={}\nstdin={}\ncgroup={}\n",
        quote(&kernel.release),
        quote(&kernel.modules.to_string_lossy()),
        if options.stdin { "yes" } else { "no" },
        match options.cgroup {
            CgroupChoice::V1 => "v1",
            CgroupChoice::V2 => "v2",
        },
    )
}

/// The script that becomes the command.
pub fn script(tree: &Tree, options: &Options) -> Result<String> {
    let mut text = String::from("# written by `cargo xtask host`\n");
    let here = std::env::current_dir().context("no current directory")?;
    text.push_str(&format!("cd {} || cd /\n", quote(&here.to_string_lossy())));
    for name in PASSED_ON {
        if let Ok(value) = std::env::var(name) {
            text.push_str(&format!("export {name}={}\n", quote(&value)));
        }
    }
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("BULKHEAD_")) {
        text.push_str(&format!("export {name}={}\n", quote(&value)));
    }
    let mut path = vec![tree.bin().to_string_lossy().into_owned()];
    if let Ok(cargo) =
        std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|h| h + "/.cargo"))
    {
        path.push(cargo + "/bin");
    }
    path.push(SYSTEM_PATH.to_owned());
    text.push_str(&format!("export PATH={}\n", quote(&path.join(":"))));
    text.push_str("export BULKHEAD_IN_TEST_HOST=1 XDG_RUNTIME_DIR=/run/user/0\n");
    for pair in &options.env {
        let Some((name, value)) = pair.split_once('=') else {
            bail!("--env {pair}: expected NAME=VALUE");
        };
        text.push_str(&format!("export {name}={}\n", quote(value)));
    }
    let words: Vec<String> = options.command.iter().map(|word| quote(word)).collect();
    text.push_str(&format!("exec {}\n", words.join(" ")));
    Ok(text)
}

/// `text` as one word of a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_back_every_word_unchanged() {
        for word in ["plain", "", "it's", "a b\n c", "$HOME `id` \"x\" \\", "*"] {
            let out = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quote(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), word);
        }
    }
}
