//! `-t`: a real terminal on both sides.

use std::process::Command;

use bulkhead_tests::terminal::Terminal;
use bulkhead_tests::turn::shared;
use bulkhead_tests::{Background, bulkhead, small};

/// The shell of a small container in a window of 33 by 101.
fn shell() -> Terminal {
    let mut command = Command::new("bulkhead");
    command.args(["run", "-it", "--rm", "-e", "PS1=ready> ", small(), "sh"]);
    let terminal = Terminal::start(command, 33, 101);
    terminal.expect("ready> ");
    terminal
}

#[test]
fn size_colours_keys_and_status() {
    let _turn = shared();
    let mut terminal = shell();
    terminal.type_in("stty size; tty; echo $TERM\n");
    terminal.expect("33 101\r\n/dev/pts/0\r\nxterm\r\n");
    terminal.type_in("printf '\\033[1;3''1mred\\033[0m\\n'\n");
    terminal.expect("\x1b[1;31mred\x1b[0m\r\n");
    // Ctrl-C is for the process in front, not for us, and not for the shell.
    // Ctrl-C and Ctrl-\\ are for the process in front: not for us, nor the shell.
    // Each line is typed once the one before is through: keys that arrive with a
    // signal's key are thrown away.
    for (line, mark, key, echo, status) in [
        ("echo go''ing", "going", "\x03", "^C", "status=130"),
        ("echo ag''ain", "again", "\x1c", "Quit", "status=131"),
    ] {
        terminal.type_in(&format!("sh -c \"{line}; exec sleep 1000\"\n"));
        terminal.expect(mark);
        terminal.type_in(key);
        terminal.expect(echo);
        std::thread::sleep(std::time::Duration::from_secs(1));
        terminal.type_in("echo sta''tus=$?\n");
        terminal.expect(status);
    }
    terminal.type_in("exit 7\n");
    let (status, output) = terminal.end();
    assert_eq!(status, 7, "{output}");
}

#[test]
fn a_resize_arrives() {
    let _turn = shared();
    let mut command = Command::new("bulkhead");
    let script = "trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.1; done";
    command.args(["run", "-it", "--rm", small(), "sh", "-c", script]);
    let terminal = Terminal::start(command, 33, 101);
    terminal.expect("ready");
    terminal.resize(44, 77);
    terminal.expect("44 77");
    assert_eq!(terminal.end().0, 4);
}

#[test]
fn the_terminal_is_given_back_as_it_was() {
    let _turn = shared();
    let script = format!(
        "stty -g; bulkhead run -it --rm {} sh -c 'stty -g; exit 3'; echo code=$?; stty -g; \
         bulkhead run -it --rm {} no-such-command; stty -g",
        small(),
        small()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let (status, output) = Terminal::start(command, 24, 80).end();
    assert_eq!(status, 0, "{output}");
    let settings: Vec<&str> =
        output.lines().map(str::trim).filter(|line| line.matches(':').count() > 20).collect();
    assert_eq!(settings.len(), 4, "{output}");
    assert_eq!(settings[0], settings[2], "{output}");
    assert_eq!(settings[0], settings[3], "{output}");
    assert!(output.contains("code=3"), "{output}");
}

#[test]
fn exec_has_a_terminal_too() {
    let _turn = shared();
    let idle = Background::idle(&[]);
    let mut command = Command::new("bulkhead");
    command.args([
        "exec",
        "-it",
        &idle.id,
        "sh",
        "-c",
        "stty size; read line; echo got $line; exit 8",
    ]);
    let mut terminal = Terminal::start(command, 20, 60);
    terminal.expect("20 60");
    terminal.type_in("words\n");
    terminal.expect("got words");
    assert_eq!(terminal.end().0, 8);
}

#[test]
fn a_terminal_wants_one_on_this_side() {
    let _turn = shared();
    bulkhead(&["run", "--rm", "-it", small(), "sh"])
        .fails_saying(125, &["the input device is not a TTY"]);
    // -t alone gives the process one; ours need not be.
    let ended =
        bulkhead(&["run", "--rm", "-t", small(), "sh", "-c", "echo to stderr >&2; tty"]).expect(0);
    assert_eq!(ended.text(), "to stderr\r\n/dev/pts/0\r\n");
}
