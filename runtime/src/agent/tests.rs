use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::agent::{ErrorKind, Message};
use protocol::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn hello(version: u32) -> Message {
    Message::Hello(Hello { version, kernel: "6.12".into(), uptime_us: 1 })
}

async fn send(peer: &mut DuplexStream, message: &Message) {
    peer.write_all(&frame::encode(message).unwrap()).await.unwrap();
}

async fn receive(peer: &mut DuplexStream) -> Message {
    let mut header = [0; frame::HEADER];
    peer.read_exact(&mut header).await.unwrap();
    let mut payload = vec![0; frame::payload_len(header).unwrap()];
    peer.read_exact(&mut payload).await.unwrap();
    frame::decode(&payload).unwrap()
}

async fn connected() -> (Agent, Greeting, DuplexStream) {
    let (ours, mut peer) = duplex(256);
    send(&mut peer, &hello(protocol::PROTOCOL_VERSION)).await;
    let (agent, greeting) = Agent::greet(ours, Duration::from_secs(5)).await.unwrap();
    (agent, greeting, peer)
}

fn stats(container: &str) -> Call {
    Call::Stats { container: container.into() }
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let (agent, _greeting, mut peer) = connected().await;
    let peer = tokio::spawn(async move {
        let mut calls = vec![receive(&mut peer).await, receive(&mut peer).await];
        calls.reverse();
        // An id that nobody asked for is ignored.
        send(&mut peer, &Message::Return { id: 999, result: Ok(Return::Done) }).await;
        for call in calls {
            let Message::Call { id, call: Call::Stats { container } } = call else { panic!() };
            let map = BTreeMap::from([("name".to_string(), container)]);
            send(&mut peer, &Message::Return { id, result: Ok(Return::Stats(map)) }).await;
        }
        peer
    });
    let (a, b) = tokio::join!(agent.call(stats("a")), agent.call(stats("b")));
    for (answer, name) in [(a, "a"), (b, "b")] {
        let Return::Stats(map) = answer.unwrap() else { panic!() };
        assert_eq!(map["name"], name);
    }
    peer.await.unwrap();
}

#[tokio::test]
async fn a_refusal_keeps_its_kind() {
    let (agent, _greeting, mut peer) = connected().await;
    let call = tokio::spawn(async move { agent.call(stats("x")).await });
    let Message::Call { id, .. } = receive(&mut peer).await else { panic!() };
    let kind = ErrorKind::CommandNotFound;
    let error = protocol::agent::AgentError { kind, message: "no `foo`".into() };
    send(&mut peer, &Message::Return { id, result: Err(error.clone()) }).await;
    let Err(AgentError::Refused(got)) = call.await.unwrap() else { panic!() };
    assert_eq!(got, error);
}

#[tokio::test]
async fn the_end_of_the_connection_fails_all_calls() {
    let (agent, _greeting, mut peer) = connected().await;
    let other = agent.clone();
    let call = tokio::spawn(async move { other.wait(process("x")).await });
    receive(&mut peer).await;
    drop(peer);
    assert!(matches!(call.await.unwrap(), Err(AgentError::Closed(_))));
    assert!(matches!(agent.call(stats("y")).await, Err(AgentError::Closed(_))));
}

fn process(container: &str) -> ProcessId {
    ProcessId { container: container.into(), exec: None }
}

#[tokio::test(start_paused = true)]
async fn silence_is_bounded() {
    let (agent, _greeting, _peer) = connected().await;
    let error = agent.call(stats("x")).await.unwrap_err();
    assert_eq!(error.to_string(), "the guest did not answer `stats` within 60 s");
    let (ours, _silent) = duplex(64);
    let error = Agent::greet(ours, Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(error.to_string(), "the guest did not answer `hello` within 3 s");
}

#[tokio::test]
async fn another_version_is_named() {
    let (ours, mut peer) = duplex(256);
    send(&mut peer, &hello(77)).await;
    let error = Agent::greet(ours, Duration::from_secs(5)).await.unwrap_err();
    assert!(error.to_string().contains("version 77"), "{error}");
}

#[tokio::test]
async fn a_guest_that_makes_calls_is_cut_off() {
    let (agent, _greeting, mut peer) = connected().await;
    send(&mut peer, &Message::Call { id: 1, call: Call::PowerOff }).await;
    assert!(matches!(agent.call(stats("x")).await, Err(AgentError::Closed(_))));
}

#[tokio::test]
async fn a_flood_of_events_is_dropped() {
    let (agent, mut greeting, mut peer) = connected().await;
    let flood = tokio::spawn(async move {
        for _ in 0..1000 {
            send(&mut peer, &Message::Event(Event::Oom { container: "x".into() })).await;
        }
        let Message::Call { id, .. } = receive(&mut peer).await else { panic!() };
        send(&mut peer, &Message::Return { id, result: Ok(Return::Done) }).await;
    });
    agent.order(stats("x")).await.unwrap();
    flood.await.unwrap();
    let mut kept = 0;
    while greeting.events.try_recv().is_ok() {
        kept += 1;
    }
    assert_eq!(kept, QUEUE);
}

proptest! {
    #[test]
    fn hostile_bytes_end_the_connection_only(bytes in prop::collection::vec(any::<u8>(), 4..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (agent, _greeting, mut peer) = connected().await;
            let _ = peer.write_all(&bytes).await;
            drop(peer);
            assert!(agent.call(stats("x")).await.is_err());
        });
    }
}
