//! The host's part: calls and streams over socket pairs.

use std::rc::Rc;

use bulkhead_agent::server::{read_message, serve_calls, serve_stream, write_message};
use bulkhead_agent::state::Agent;
use protocol::agent::{
    AgentError, Call, Create, Exec, Exit, Message, ProcessId, Return, Stream, StreamHello,
    StreamReply,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::spawn_local;

use crate::spec;

pub type Failure = Box<dyn std::error::Error>;

pub struct Client {
    pub agent: Rc<Agent>,
}

impl Client {
    /// One call on a connection of its own.
    pub async fn call(&self, call: Call) -> Result<Return, AgentError> {
        let mut connection = self.connect(false).await;
        write_message(&mut connection, &Message::Call { id: 9, call }).await.unwrap();
        loop {
            match read_message::<Message, _>(&mut connection).await.unwrap() {
                Message::Return { id: 9, result } => return result,
                Message::Hello(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub async fn connect(&self, events: bool) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        spawn_local(serve_calls(self.agent.clone(), theirs, events));
        ours
    }

    pub async fn stream(
        &self,
        process: ProcessId,
        stream: Stream,
    ) -> Result<UnixStream, AgentError> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        spawn_local(serve_stream(self.agent.clone(), theirs));
        write_message(&mut ours, &StreamHello { process, stream }).await.unwrap();
        let reply: StreamReply = read_message(&mut ours).await.unwrap();
        reply.map(|()| ours)
    }

    pub async fn create(&self, create: Create) -> Result<i32, AgentError> {
        match self.call(Call::Create(Box::new(create))).await? {
            Return::Pid(pid) => Ok(pid),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub async fn exec(&self, exec: Exec) -> Result<i32, AgentError> {
        match self.call(Call::Exec(Box::new(exec))).await? {
            Return::Pid(pid) => Ok(pid),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub async fn start(&self, id: &str) -> Result<(), AgentError> {
        self.call(Call::Start { container: id.into() }).await.map(drop)
    }

    pub async fn wait(&self, process: ProcessId) -> Result<Exit, AgentError> {
        match self.call(Call::Wait { process }).await? {
            Return::Exit(exit) => Ok(exit),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub async fn delete(&self, id: &str) -> Result<(), AgentError> {
        self.call(Call::Delete { container: id.into() }).await.map(drop)
    }

    /// Create, start, collect stdout and stderr, wait, delete.
    pub async fn run(&self, create: Create) -> Result<(u8, String), Failure> {
        let id = create.container.clone();
        self.create(create).await?;
        let out = self.stream(spec::name(&id, None), Stream::Stdout).await?;
        let err = self.stream(spec::name(&id, None), Stream::Stderr).await?;
        let collect = spawn_local(async { (read(out).await, read(err).await) });
        let started = self.start(&id).await;
        let exit = self.wait(spec::name(&id, None)).await?;
        self.delete(&id).await?;
        started?;
        let (out, err) = collect.await?;
        Ok((exit.status(), out + &err))
    }

    /// Runs a script in a container of its own.
    pub async fn script(&self, id: &str, script: &str) -> Result<(u8, String), Failure> {
        self.run(spec::create(id, spec::spec(spec::shell(script)), spec::OUT)).await
    }
}

pub async fn read(mut from: UnixStream) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

pub async fn write(mut to: UnixStream, bytes: Vec<u8>) -> UnixStream {
    let _ = to.write_all(&bytes).await;
    let _ = to.shutdown().await;
    to
}
