//! Runs compiled programs in a small interpreter against the profile's meaning.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn run(filter: &Filter, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut at, mut a) = (0usize, 0u32);
    loop {
        let (code, jt, jf, k) = filter.program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            LOAD => {
                let k = k as usize;
                a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
            }
            AND => a &= k,
            JUMP => at += k as usize,
            JEQ => at += jump(a == k),
            JGT => at += jump(a > k),
            JGE => at += jump(a >= k),
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn profile(value: serde_json::Value) -> Result<Filter, SeccompError> {
    compile(&serde_json::from_value(value).unwrap())
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;

#[test]
fn three_actions_in_one_profile() {
    let filter = profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "write", "open", "openat2", "_llseek"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
        ],
    }))
    .unwrap();
    let native =
        |number: i64, first| run(&filter, AUDIT_ARCH_X86_64, number as u32, [first, 0, 0, 0, 0, 0]);
    assert_eq!(native(libc::SYS_read, 0), ALLOW);
    assert_eq!(native(libc::SYS_open, 0), ALLOW);
    assert_eq!(native(libc::SYS_close, 0), EPERM);
    assert_eq!(native(libc::SYS_clone3, 0), ENOSYS);
    assert_eq!(native(libc::SYS_personality, 8), ALLOW);
    assert_eq!(native(libc::SYS_personality, 8 | 1 << 40), EPERM);
    assert_eq!(native(libc::SYS_openat2, 0), ALLOW);
    assert_eq!(native(462, 0), ENOSYS, "newer than the profile");
    assert_eq!(run(&filter, 0x4000_0003, 3, [0; 6]), ENOSYS);
    assert_eq!(native(0x4000_0000, 0), ENOSYS);
}

#[test]
fn what_cannot_be_expressed_is_named() {
    let notify = json!({"defaultAction": "SCMP_ACT_NOTIFY"});
    assert_eq!(profile(notify), Err(SeccompError::Notify));
    let arm = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ARM"]});
    assert_eq!(profile(arm), Err(SeccompError::Architecture));
    let index = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_KILL",
         "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]});
    assert_eq!(profile(index), Err(SeccompError::Index(6)));
}

fn holds(op: &str, arg: u64, value: u64, two: u64) -> bool {
    match op {
        "SCMP_CMP_NE" => arg != value,
        "SCMP_CMP_LT" => arg < value,
        "SCMP_CMP_LE" => arg <= value,
        "SCMP_CMP_EQ" => arg == value,
        "SCMP_CMP_GE" => arg >= value,
        "SCMP_CMP_GT" => arg > value,
        _ => arg & value == two,
    }
}

fn operator() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ])
}

/// Numbers whose halves coincide often.
fn number() -> impl Strategy<Value = u64> {
    (0u64..3, 0u64..3).prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    fn conditions_mean_what_the_profile_says(
        ops in prop::collection::vec((operator(), number(), number()), 1..4),
        args in prop::array::uniform6(number()),
    ) {
        let conditions: Vec<_> = ops.iter().enumerate().map(|(index, (op, value, two))| {
            json!({"index": index, "value": value, "valueTwo": two, "op": op})
        }).collect();
        let filter = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["write"], "action": "SCMP_ACT_ERRNO", "args": conditions}]})).unwrap();
        let all = ops.iter().enumerate().all(|(i, (op, value, two))| holds(op, args[i], *value, *two));
        let got = run(&filter, AUDIT_ARCH_X86_64, 1, args);
        prop_assert_eq!(got, if all { EPERM } else { ALLOW });
    }
}
