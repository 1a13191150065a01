//! The task behind a connection: frames in, frames out, who waits for what.

use std::collections::HashMap;

use protocol::agent::{Event, Message};
use protocol::frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::{AgentError, Answer, Request};

/// Bytes that may wait to be written before further calls have to wait.
const OUT_LIMIT: usize = 1 << 20;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Both directions of a connection with their buffers. All waiting on it may be
/// cancelled at any time without loss.
pub(super) struct Link<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite> Link<S> {
    pub(super) fn new(stream: S) -> Link<S> {
        let (reader, writer) = tokio::io::split(stream);
        Link { reader, writer, incoming: Vec::new(), outgoing: Vec::new() }
    }

    /// The next message, or why there will be none.
    pub(super) async fn next(&mut self) -> Result<Message, String> {
        receive(&mut self.reader, &mut self.incoming).await
    }
}

async fn receive<R: AsyncRead + Unpin>(
    reader: &mut R,
    buffer: &mut Vec<u8>,
) -> Result<Message, String> {
    loop {
        if let Some(message) = frame::take(buffer).map_err(|error| error.to_string())? {
            return Ok(message);
        }
        buffer.reserve(CHUNK);
        // `take` has refused oversized frames, so that the buffer stays below
        // one frame and one chunk.
        match reader.read_buf(buffer).await {
            Ok(0) => return Err("end of stream".into()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Writes some of `bytes`; pends while there are none.
async fn transmit<W: AsyncWrite + Unpin>(
    writer: &mut W,
    bytes: &mut Vec<u8>,
) -> std::io::Result<()> {
    if bytes.is_empty() {
        return std::future::pending().await;
    }
    let written = writer.write(bytes).await?;
    bytes.drain(..written);
    if bytes.is_empty() { writer.flush().await } else { Ok(()) }
}

/// Serves a connection until it ends or all its handles are gone.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Send + 'static>(
    link: Link<S>,
    mut inbox: mpsc::Receiver<Request>,
    events: mpsc::Sender<Event>,
) {
    let Link { mut reader, mut writer, mut incoming, mut outgoing } = link;
    let mut waiting: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
    let mut next_id = 0u64;
    let why = loop {
        let may_send = outgoing.len() < OUT_LIMIT;
        tokio::select! {
            request = inbox.recv(), if may_send => match request {
                None => return,
                Some(Request { call, reply }) => {
                    // Whoever gave up waiting needs no slot any more.
                    waiting.retain(|_, slot| !slot.is_closed());
                    next_id += 1;
                    match frame::encode(&Message::Call { id: next_id, call }) {
                        Ok(bytes) => {
                            outgoing.extend_from_slice(&bytes);
                            waiting.insert(next_id, reply);
                        }
                        Err(error) => {
                            let _ = reply.send(Err(AgentError::Closed(error.to_string().into())));
                        }
                    }
                }
            },
            message = receive(&mut reader, &mut incoming) => match message {
                Ok(Message::Return { id, result }) => {
                    if let Some(slot) = waiting.remove(&id) {
                        let _ = slot.send(result.map_err(|error| AgentError::Refused(bounded(error))));
                    }
                }
                Ok(Message::Event(event)) => drop(events.try_send(event)),
                Ok(_) => break "the guest sent a message that only the host sends".to_string(),
                Err(why) => break why,
            },
            sent = transmit(&mut writer, &mut outgoing) => if let Err(error) = sent {
                break error.to_string();
            },
        }
    };
    let why: std::sync::Arc<str> = why.into();
    // Calls that come later see the same reason, not just a closed channel.
    inbox.close();
    for slot in waiting.into_values() {
        let _ = slot.send(Err(AgentError::Closed(why.clone())));
    }
    while let Some(request) = inbox.recv().await {
        let _ = request.reply.send(Err(AgentError::Closed(why.clone())));
    }
}

/// Longest message of a refusal in characters: it is the guest's to choose.
const MAX_MESSAGE: usize = 4096;

/// A refusal of a length that people read.
pub(crate) fn bounded(mut error: protocol::agent::AgentError) -> protocol::agent::AgentError {
    if let Some((end, _)) = error.message.char_indices().nth(MAX_MESSAGE) {
        error.message.truncate(end);
    }
    error
}
