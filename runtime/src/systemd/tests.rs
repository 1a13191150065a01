use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::connection::Builder;
use zbus::message::Type as MessageType;
use zbus::{Connection, Guid, Message, MessageStream, ObjectPath, OwnedVariant};

use super::*;
use crate::systemd::value::Type;

#[test]
fn paths_become_scopes_in_slices() {
    let cases = [
        (None, "bulkhead-c1.scope", "system.slice", "system.slice/bulkhead-c1.scope"),
        (Some(""), "bulkhead-c1.scope", "system.slice", "system.slice/bulkhead-c1.scope"),
        (Some(":runc:x"), "runc-x.scope", "system.slice", "system.slice/runc-x.scope"),
        (Some("-:a:b"), "a-b.scope", "-.slice", "a-b.scope"),
        (
            Some("kubepods-burstable-pod1_2.slice:cri-containerd:9"),
            "cri-containerd-9.scope",
            "kubepods-burstable-pod1_2.slice",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/\
             cri-containerd-9.scope",
        ),
    ];
    for (path, name, slice, cgroup) in cases {
        let unit = Unit::of("c1", path).unwrap();
        assert_eq!((unit.name.as_str(), unit.slice.as_str()), (name, slice));
        assert_eq!(unit.cgroup(), Path::new("/sys/fs/cgroup").join(cgroup));
    }
    let long = format!("::{}", "x".repeat(300));
    for wrong in [
        "/a/b",
        "a:b",
        "a.slice:b:c:d",
        "a:b:c",
        ".slice:b:c",
        "a--b.slice:b:c",
        "-a.slice:b:c",
        "a/b.slice:c:d",
        "a.slice:b/..:c",
        "a.slice::c.slice",
        ":_x:y",
        ":memory.x:y",
        "cgroup.slice:b:c",
        &long,
    ] {
        assert!(Unit::of("c1", Some(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn annotations_are_read_as_gvariant_texts() {
    let cases = [
        ("true", Value::Bool(true)),
        ("'a \\'b\\''", Value::Text("a 'b'".into())),
        ("\"inactive-or-failed\"", Value::Text("inactive-or-failed".into())),
        ("uint64 123456789", Value::Uint64(123_456_789)),
        (" 17 ", Value::Int32(17)),
        ("-0x10", Value::Int32(-16)),
        ("1.5", Value::Double(1.5)),
        ("byte 255", Value::Byte(255)),
        ("@t 5", Value::Uint64(5)),
        ("['a', 'b',]", list('s', ["a", "b"].map(|text| Value::Text(text.into())))),
        ("[1, uint32 2]", list('u', [1, 2].map(Value::Uint32))),
        ("@as []", list('s', [])),
        (
            "[('/dev/sda', uint64 7)]",
            Value::List(
                Type::Tuple(vec![Type::Basic('s'), Type::Basic('t')]),
                vec![Value::Tuple(vec![Value::Text("/dev/sda".into()), Value::Uint64(7)])],
            ),
        ),
    ];
    for (text, value) in cases {
        assert_eq!(Value::parse(text), Ok(value), "{text}");
    }
    let deep = "[".repeat(10_000);
    let typed = format!("@{} 1", "a".repeat(10_000));
    for wrong in [
        "",
        "word",
        "'open",
        "[1, 'a']",
        "[]",
        "()",
        "@() ()",
        "1 2",
        "byte 256",
        "uint64 -1",
        "int32 1.5",
        "@q",
        "@",
        "@(",
        "@av []",
        "{'a': 1}",
        "b'bytes'",
        "<1>",
        "(1",
        "1e999",
        "'\\x'",
        "99999999999999999999",
        &deep,
        &typed,
    ] {
        assert!(Value::parse(wrong).is_err(), "{wrong}");
    }
}

fn list<const N: usize>(letter: char, values: [Value; N]) -> Value {
    Value::List(Type::Basic(letter), values.into())
}

#[test]
fn annotations_name_properties() {
    let of = |key: &str, text: &str| of_annotations([(&key.to_owned(), &text.to_owned())]);
    let one = |name: &str, value| Ok(vec![Property::new(name, value)]);
    let key = |name: &str| format!("org.systemd.property.{name}");
    assert_eq!(of("other", "x"), Ok(Vec::new()));
    assert_eq!(
        of(&key("CollectMode"), "'inactive'"),
        one("CollectMode", Value::Text("inactive".into()))
    );
    assert_eq!(of(&key("TimeoutStopSec"), "1.5"), one("TimeoutStopUSec", Value::Uint64(1_500_000)));
    assert_eq!(of(&key("TimeoutStopUSec"), "uint64 5"), one("TimeoutStopUSec", Value::Uint64(5)));
    for (name, text) in [
        ("Ab", "1"),
        ("A.b.c", "1"),
        ("TimeoutStopSec", "-1"),
        ("Abc", "x"),
        ("Slice", "'x.slice'"),
        ("PIDs", "[uint32 1]"),
        ("Delegate", "false"),
    ] {
        assert_eq!(of(&key(name), text).unwrap_err().0, key(name));
    }
}

#[test]
fn limits_become_properties() {
    let of = |file: &str, value: &str| of_limits(&[(file.to_owned(), value.to_owned())]);
    let number = |name: &str, value| vec![Property::new(name, Value::Uint64(value))];
    let device = |name: &str, value| {
        let of = Type::Tuple(vec![Type::Basic('s'), Type::Basic('t')]);
        let pair = vec![Value::Text("/dev/block/8:16".into()), Value::Uint64(value)];
        vec![Property::new(name, Value::List(of, vec![Value::Tuple(pair)]))]
    };
    let quota = |period, per_second| {
        [number("CPUQuotaPeriodUSec", period), number("CPUQuotaPerSecUSec", per_second)].concat()
    };
    let bytes = |name: &str, bytes: &[u8]| {
        let mask = bytes.iter().copied().map(Value::Byte).collect();
        vec![Property::new(name, Value::List(Type::Basic('y'), mask))]
    };
    let cases = [
        ("memory.max", "1048576", number("MemoryMax", 1_048_576)),
        ("memory.swap.max", "max", number("MemorySwapMax", u64::MAX)),
        ("pids.max", "256", number("TasksMax", 256)),
        ("cpu.weight", "39", number("CPUWeight", 39)),
        ("cpu.max", "150000 100000", quota(100_000, 1_500_000)),
        ("cpu.max", "12345", quota(100_000, 130_000)),
        ("cpu.max", "max 50000", quota(50_000, u64::MAX)),
        ("cpuset.cpus", "0-2,9\n", bytes("AllowedCPUs", &[0b111, 0b10])),
        ("cpuset.mems", "0", bytes("AllowedMemoryNodes", &[1])),
        // The kernel's word on these is heard by the file.
        ("cpuset.cpus", "0-7:1/2", Vec::new()),
        ("cpuset.cpus", "2-1", Vec::new()),
        ("cpuset.cpus", "99999999999", Vec::new()),
        ("io.weight", "default 10", number("IOWeight", 10)),
        ("io.weight", "8:16 20", device("IODeviceWeight", 20)),
        ("io.latency", "8:16 target=75", device("IODeviceLatencyTargetUSec", 75)),
        (
            "io.max",
            "8:16 rbps=1 wiops=max",
            [device("IOReadBandwidthMax", 1), device("IOWriteIOPSMax", u64::MAX)].concat(),
        ),
        (
            "io.max",
            "8:16 rbps=1\n8:16 wbps=2\n",
            [device("IOReadBandwidthMax", 1), device("IOWriteBandwidthMax", 2)].concat(),
        ),
        ("cpuset.cpus.partition", "root", Vec::new()),
        ("memory.limit_in_bytes", "1048576", number("MemoryLimit", 1_048_576)),
        ("cpu.shares", "700", number("CPUShares", 700)),
        ("cpu.cfs_quota_us", "-1", quota(100_000, u64::MAX)),
        ("cpu.cfs_period_us", "50000", Vec::new()),
    ];
    for (file, value, properties) in cases {
        assert_eq!(of(file, value).unwrap(), properties, "{file} {value}");
    }
    let both = [("cpu.cfs_period_us", "50000"), ("cpu.cfs_quota_us", "25000")];
    let both = both.map(|(file, value)| (file.to_owned(), value.to_owned()));
    assert_eq!(of_limits(&both).unwrap(), quota(50_000, 500_000));
    for (file, value) in [
        ("memory.max", "1k"),
        ("cpu.cfs_quota_us", "some"),
        ("cpu.max", "1 0"),
        ("cpu.max", "1 2 3"),
        ("io.max", "sda rbps=1"),
        ("io.max", "8:16 bps=1"),
        ("io.max", "8:../../x rbps=1"),
    ] {
        let error = of(file, value).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
}

/// What a systemd of ours answers to a call.
#[derive(Clone, Copy)]
enum Answer {
    /// A job that ends so; its signal comes before the reply.
    Job(&'static str),
    /// A job of which nothing is heard any more.
    Silence,
    /// Nothing.
    Done,
    /// The path of a unit.
    Unit,
    /// A property that is this text.
    Text(&'static str),
    /// An error.
    No(&'static str),
}

const EXISTS: Answer = Answer::No("org.freedesktop.systemd1.UnitExists");
const NO_SUCH: Answer = Answer::No("org.freedesktop.systemd1.NoSuchUnit");

/// Carries out `calls` with a systemd that gives these answers in turn; the names and
/// first properties of the calls that it got.
fn with_answers<T>(
    answers: &[Answer],
    calls: impl AsyncFnOnce(&Bus) -> T,
) -> (T, Vec<(String, String)>) {
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    event_loop.block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = Builder::unix_stream(theirs).server(Guid::generate()).p2p().build();
        let client = Builder::unix_stream(ours).p2p().build();
        let (server, client) = tokio::join!(server, client);
        let (server, bus) = (server.unwrap(), Bus::over(client.unwrap(), Duration::from_secs(1)));
        let mut received = MessageStream::from(&server);
        let mut got = Vec::new();
        let serve = async {
            for answer in answers {
                let message = received.next().await.unwrap().unwrap();
                assert_eq!(message.message_type(), MessageType::MethodCall);
                got.push((message.header().member().unwrap().to_string(), told(&message)));
                reply(&server, &message, *answer).await;
            }
            std::future::pending::<()>().await;
        };
        let value = tokio::select! {
            value = calls(&bus) => value,
            () = serve => unreachable!("it serves for ever"),
        };
        (value, got)
    })
}

/// The properties of a call, as text.
fn told(message: &Message) -> String {
    type Properties = Vec<(String, OwnedVariant)>;
    let body = message.body();
    let transient = body.deserialize::<(String, String, Properties, Vec<(String, Properties)>)>();
    let properties = match (transient, body.deserialize::<(String, bool, Properties)>()) {
        (Ok((_, _, properties, _)), _) | (_, Ok((_, _, properties))) => properties,
        _ => return String::new(),
    };
    let text = properties.iter().map(|(name, value)| format!("{name}={:?}\n", **value));
    text.collect()
}

async fn reply(server: &Connection, message: &Message, answer: Answer) {
    let header = message.header();
    let job = ObjectPath::try_from("/org/freedesktop/systemd1/job/7").unwrap();
    let unit = ObjectPath::try_from("/org/freedesktop/systemd1/unit/u_2escope").unwrap();
    let other = ObjectPath::try_from("/org/freedesktop/systemd1/job/6").unwrap();
    let removed = async |job: &ObjectPath<'_>, result: &str| {
        let (path, manager) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
        let body = (7u32, job, "u.scope", result);
        server.emit_signal(None::<&str>, path, manager, "JobRemoved", &body).await.unwrap();
    };
    match answer {
        Answer::Job(result) => {
            removed(&other, "failed").await;
            removed(&job, result).await;
            server.reply(&header, &job).await.unwrap();
        }
        Answer::Silence => {
            server.reply(&header, &job).await.unwrap();
            removed(&other, "done").await;
        }
        Answer::Unit => server.reply(&header, &unit).await.unwrap(),
        Answer::Text(text) => {
            server.reply(&header, &(zbus::Variant::from(text),)).await.unwrap();
        }
        Answer::Done => server.reply(&header, &()).await.unwrap(),
        Answer::No(name) => server.reply_error(&header, name, &"because").await.unwrap(),
    }
}

fn unit() -> Unit {
    let mut unit = Unit::of("c1", Some("a-b.slice:p:c1")).unwrap();
    unit.properties = vec![Property::new("After", list('s', [Value::Text("x.service".into())]))];
    unit
}

#[test]
fn a_scope_begins_with_its_process_and_limits() {
    let limits = of_limits(&[("cpuset.cpus".into(), "0".into())]).unwrap();
    let (started, calls) =
        with_answers(&[Answer::Job("done")], async |bus| bus.start(&unit(), 42, &limits).await);
    started.unwrap();
    assert_eq!(calls[0].0, "StartTransientUnit");
    for wanted in [
        "PIDs=Array(Array { elements: [U32(42)]",
        "Slice=Str(\"a-b.slice\")",
        "Delegate=Bool(true)",
        "DefaultDependencies=Bool(false)",
        "AllowedCPUs=Array(Array { elements: [U8(1)]",
        "After=Array(",
    ] {
        assert!(calls[0].1.contains(wanted), "{wanted} in {}", calls[0].1);
    }
}

#[test]
fn one_that_failed_is_forgotten_and_one_that_runs_is_left_alone() {
    let names = |calls: Vec<(String, String)>| calls.into_iter().map(|(name, _)| name);
    let begin = async |bus: &Bus| bus.start(&unit(), 42, &[]).await;
    let (started, calls) = with_answers(&[EXISTS, Answer::Done, Answer::Job("done")], begin);
    started.unwrap();
    let expected = ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"];
    assert!(names(calls).eq(expected));
    let (refused, calls) = with_answers(&[EXISTS, Answer::Done, EXISTS], begin);
    assert!(matches!(refused, Err(SystemdError::Refused { .. })), "{refused:?}");
    assert!(names(calls).eq(expected));
    let (failed, calls) = with_answers(&[Answer::Job("failed"), Answer::Done], begin);
    let text = failed.unwrap_err().to_string();
    assert!(text.contains("p-c1.scope") && text.contains("failed"), "{text}");
    assert!(names(calls).eq(["StartTransientUnit", "ResetFailedUnit"]));
    let (late, _) = with_answers(&[Answer::Silence], begin);
    assert!(matches!(late, Err(SystemdError::Late { .. })), "{late:?}");
}

#[test]
fn only_what_is_ours_is_stopped() {
    let stop = async |bus: &Bus| bus.stop(&unit()).await;
    let names = |calls: Vec<(String, String)>| calls.into_iter().map(|(name, _)| name);
    let ours = [Answer::Unit, Answer::Text("bulkhead container c1")];
    // It may end between the look and the stop.
    for answers in [[Answer::Job("done"), Answer::Done], [NO_SUCH, NO_SUCH]] {
        let (stopped, calls) = with_answers(&[ours, answers].concat(), stop);
        stopped.unwrap();
        assert!(names(calls).eq(["GetUnit", "Get", "StopUnit", "ResetFailedUnit"]));
    }
    let (stopped, calls) = with_answers(&[Answer::Unit, Answer::Text("/bin/sleep 1000")], stop);
    stopped.unwrap();
    assert!(names(calls).eq(["GetUnit", "Get"]));
    let (stopped, calls) = with_answers(&[NO_SUCH], stop);
    stopped.unwrap();
    assert!(names(calls).eq(["GetUnit"]));
    let denied = Answer::No("org.freedesktop.DBus.Error.AccessDenied");
    for answers in [&[denied][..], &[ours[0], ours[1], denied, Answer::Done]] {
        let (refused, _) = with_answers(answers, stop);
        assert!(matches!(refused, Err(SystemdError::Refused { .. })), "{refused:?}");
    }
}

#[test]
fn properties_are_changed() {
    let limits = of_limits(&[("memory.max".into(), "4096".into())]).unwrap();
    let (set, calls) = with_answers(&[Answer::Done], async |bus| bus.set(&unit(), &limits).await);
    set.unwrap();
    assert_eq!(calls, [("SetUnitProperties".into(), "MemoryMax=U64(4096)\n".into())]);
}
