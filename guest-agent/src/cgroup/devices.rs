//! `linux.resources.devices` -> an eBPF program, which is how cgroup v2 decides
//! about devices. As in runc, everything is refused at first, the rules follow,
//! and the devices that every container has are allowed last.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType as Type};

use crate::plan::{PlanError, field};

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// A rule; `None` matches everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    fn is_total(&self) -> bool {
        *self == Rule { allow: self.allow, kind: None, major: None, minor: None, access: ALL }
    }
}

const fn char(major: u32, minor: Option<u32>) -> Rule {
    Rule { allow: true, kind: Some(CHAR), major: Some(major), minor, access: ALL }
}

const ALWAYS: [Rule; 11] = [
    Rule { allow: true, kind: Some(CHAR), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(BLOCK), major: None, minor: None, access: MKNOD },
    char(1, Some(3)), // null
    char(1, Some(5)), // zero
    char(1, Some(7)), // full
    char(1, Some(8)), // random
    char(1, Some(9)), // urandom
    char(5, Some(0)), // tty
    char(5, Some(1)), // console
    char(5, Some(2)), // ptmx
    char(136, None),  // pts
];

/// The program for `rules`.
///
/// # Errors
/// Names a rule that makes no sense.
pub fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>, PlanError> {
    let mut all = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    all.extend(ALWAYS);
    Ok(assemble(&all))
}

fn rule(rule: &LinuxDeviceCgroup) -> Result<Rule, PlanError> {
    let wrong = |reason: &str| Err(field("linux.resources.devices", format!("{rule}: {reason}")));
    let kind = match rule.typ().unwrap_or_default() {
        Type::A => None,
        Type::B => Some(BLOCK),
        Type::C | Type::U => Some(CHAR),
        Type::P => return wrong("pipes have no device rules"),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or_default().chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return wrong("access is not of r, w, m"),
        };
    }
    // -1 is the older way to write "any".
    let number = |n: Option<i64>| n.filter(|n| *n >= 0).map(|n| n as u32);
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number(rule.major()),
        minor: number(rule.minor()),
        access: if access == 0 { ALL } else { access },
    })
}

const fn op(code: u8, dst: u8, src: u8, off: i16, imm: u32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | ((off as u16) as u64) << 16
        | (imm as u64) << 32
}

const LOAD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const COPY: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const SET: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const JEQ: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const JNE: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const EXIT: u8 = 0x95;

/// The last rule that matches decides, so that they are tested from the end. A
/// rule which allows matches when it covers every access that is wanted, one
/// which denies when it covers any.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    let (kind, access, major, minor, scratch) = (2, 3, 4, 5, 6);
    let mut program = vec![
        op(LOAD, kind, 1, 0, 0),
        op(AND, kind, 0, 0, 0xffff),
        op(LOAD, access, 1, 0, 0),
        op(SHIFT, access, 0, 0, 16),
        op(LOAD, major, 1, 4, 0),
        op(LOAD, minor, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        for (register, wanted) in [(kind, rule.kind), (major, rule.major), (minor, rule.minor)] {
            tests.extend(wanted.map(|wanted| (JNE, register, wanted)));
        }
        let mut block: Vec<u64> = Vec::new();
        if rule.access != ALL {
            let (mask, jump) = if rule.allow { (!rule.access, JNE) } else { (rule.access, JEQ) };
            block.extend([op(COPY, scratch, access, 0, 0), op(AND, scratch, 0, 0, mask)]);
            tests.insert(0, (jump, scratch, 0));
        }
        let tail = [op(SET, 0, 0, 0, rule.allow.into()), op(EXIT, 0, 0, 0, 0)];
        for (index, (jump, register, value)) in tests.iter().enumerate() {
            let left = tests.len() - index - 1 + tail.len();
            block.push(op(*jump, *register, 0, left as i16, *value));
        }
        program.extend(block);
        program.extend(tail);
        if rule.is_total() {
            // The verifier refuses code that is never reached.
            return program;
        }
    }
    program.extend([op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Interprets a program.
    fn run(program: &[u64], access: u32, kind: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 10];
        let mut at = 0;
        loop {
            let word = program[at];
            at += 1;
            let (dst, src) = ((word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (off, imm) = ((word >> 16) as u16 as usize, (word >> 32) as u32);
            match word as u8 {
                LOAD => registers[dst] = context[off / 4],
                AND => registers[dst] &= imm,
                SHIFT => registers[dst] >>= imm,
                COPY => registers[dst] = registers[src],
                SET => registers[dst] = imm,
                JEQ if registers[dst] == imm => at += off,
                JNE if registers[dst] != imm => at += off,
                JEQ | JNE => {}
                EXIT => return registers[0] != 0,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn compile(value: serde_json::Value) -> Vec<u64> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(value).unwrap();
        program(&rules).unwrap()
    }

    #[test]
    fn the_default_list_of_docker() {
        let program = compile(json!([{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]));
        assert!(run(&program, READ | WRITE, CHAR, 1, 3));
        assert!(run(&program, READ, CHAR, 136, 7));
        assert!(run(&program, MKNOD, BLOCK, 8, 0));
        assert!(!run(&program, READ, BLOCK, 8, 0));
        assert!(run(&program, READ | WRITE, CHAR, 10, 229));
        assert!(!run(&program, READ | WRITE | MKNOD, CHAR, 10, 229));
        assert!(!run(&program, READ, CHAR, 1, 1));
    }

    #[test]
    fn everything_may_be_allowed_and_one_thing_not() {
        let program = compile(json!([{"allow": true},
            {"allow": false, "type": "b", "major": 8, "access": "w"}]));
        assert!(run(&program, READ, BLOCK, 8, 1));
        assert!(!run(&program, READ | WRITE, BLOCK, 8, 1));
        assert!(run(&program, ALL, CHAR, 1, 1));
        assert_eq!(program.last(), Some(&op(EXIT, 0, 0, 0, 0)));
    }
}
