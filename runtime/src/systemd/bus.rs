//! Calls to systemd's manager, see org.freedesktop.systemd1(5).
//!
//! By the system bus, as runc does. systemd's own socket (/run/systemd/private, which
//! systemctl takes for root) would need no bus daemon, but what comes from it has the
//! sender `org.freedesktop.systemd1`, which is no unique name, and which zbus refuses.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::connection::Builder;
use zbus::message::Type as MessageType;
use zbus::{
    Array, Connection, DynamicType, Error, MatchRule, Message, MessageStream, OwnedObjectPath,
    OwnedVariant, Signature, Structure, Variant,
};

use super::properties::{Property, of_scope};
use super::value::{Type, Value};
use super::{SystemdError, Unit};

/// Is there where systemd is the init, see sd_booted(3).
pub(super) const BOOTED: &str = "/run/systemd/system";
const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// How long systemd may take for one thing, as runc has it.
const LIMIT: Duration = Duration::from_secs(30);
/// Most JobRemoved signals that are kept until the reply tells which one is ours.
const MAX_EARLY: usize = 4096;

/// A connection to systemd.
#[derive(Debug)]
pub struct Bus {
    connection: Connection,
    limit: Duration,
}

/// A property of a unit, as D-Bus has it.
type Sent<'a> = (&'a str, Variant<'a>);

impl Bus {
    /// Connects.
    ///
    /// # Errors
    /// When there is no systemd, or it does not answer.
    pub async fn connect() -> Result<Bus, SystemdError> {
        if !Path::new(BOOTED).is_dir() {
            return Err(SystemdError::Absent);
        }
        let late = || Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let built = tokio::time::timeout(LIMIT, Builder::system().build()).await;
        let connection = built.unwrap_or_else(|_| Err(late()));
        Ok(Bus::over(connection.map_err(SystemdError::Unreachable)?, LIMIT))
    }

    pub(super) fn over(connection: Connection, limit: Duration) -> Bus {
        Bus { connection, limit }
    }

    /// Starts the scope with process `pid` in it and these limits. One of the same name
    /// that failed is forgotten.
    ///
    /// # Errors
    /// When it cannot be started. One that is started too late ends with its process.
    pub async fn start(
        &self,
        unit: &Unit,
        pid: u32,
        limits: &[Property],
    ) -> Result<(), SystemdError> {
        const WHAT: &str = "start";
        let properties = [&of_scope(unit, pid), limits].concat();
        let refused =
            |source| SystemdError::Refused { what: WHAT, unit: unit.name.clone(), source };
        let properties = sent(&properties).map_err(refused)?;
        let others: Vec<(&str, Vec<Sent>)> = Vec::new();
        let body = (unit.name.as_str(), "replace", properties, others);
        let begin = || self.job(WHAT, unit, "StartTransientUnit", &body);
        let begun = match begin().await {
            Err(SystemdError::Refused { source, .. }) if is(&source, UNIT_EXISTS) => {
                // A failed one stays until somebody takes note of it; one that runs is
                // left alone, and refuses us again.
                self.reset(unit).await?;
                begin().await
            }
            begun => begun,
        };
        if matches!(begun, Err(SystemdError::Failed { .. })) {
            self.reset(unit).await?;
        }
        begun
    }

    /// Changes properties of the scope, until it ends.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn set(&self, unit: &Unit, properties: &[Property]) -> Result<(), SystemdError> {
        const WHAT: &str = "change";
        let refused =
            |source| SystemdError::Refused { what: WHAT, unit: unit.name.clone(), source };
        let body = (unit.name.as_str(), true, sent(properties).map_err(refused)?);
        let done = self.call("SetUnitProperties", &body);
        self.bounded(WHAT, unit, done).await.map(drop)
    }

    /// Stops the scope, and has systemd forget it. That it is not there is as good, and so
    /// is that it is somebody else's: a creation that was refused its name cleans up as well.
    ///
    /// # Errors
    /// When it cannot be stopped.
    pub async fn stop(&self, unit: &Unit) -> Result<(), SystemdError> {
        match self.bounded("look at", unit, self.description(unit)).await {
            Ok(description) if description != unit.description() => return Ok(()),
            Err(SystemdError::Refused { source, .. }) if is(&source, NO_SUCH_UNIT) => return Ok(()),
            looked => looked.map(drop)?,
        }
        let body = (unit.name.as_str(), "replace");
        let stopped = match self.job("stop", unit, "StopUnit", &body).await {
            Err(SystemdError::Refused { source, .. }) if is(&source, NO_SUCH_UNIT) => Ok(()),
            stopped => stopped,
        };
        self.reset(unit).await?;
        stopped
    }

    /// What the unit of this name is, in words: ours names its container.
    async fn description(&self, unit: &Unit) -> Result<String, Error> {
        let found = self.call("GetUnit", &(unit.name.as_str(),)).await?;
        let path: OwnedObjectPath = found.body().deserialize()?;
        let body = (UNIT, "Description");
        let get = self.connection.call_method(Some(NAME), path, Some(PROPERTIES), "Get", &body);
        let value: OwnedVariant = get.await?.body().deserialize()?;
        match &*value {
            Variant::Str(text) => Ok(text.to_string()),
            _ => Err(Error::Failure("a description that is no text".into())),
        }
    }

    async fn reset(&self, unit: &Unit) -> Result<(), SystemdError> {
        let body = (unit.name.as_str(),);
        let reset = self.call("ResetFailedUnit", &body);
        match self.bounded("forget", unit, reset).await {
            Err(SystemdError::Refused { source, .. }) if is(&source, NO_SUCH_UNIT) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn bounded<T>(
        &self,
        what: &'static str,
        unit: &Unit,
        done: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, SystemdError> {
        let unit = || unit.name.clone();
        match tokio::time::timeout(self.limit, done).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(SystemdError::Refused { what, unit: unit(), source }),
            Err(_) => Err(SystemdError::Late { what, unit: unit(), limit: self.limit }),
        }
    }

    async fn call<B>(&self, method: &str, body: &B) -> Result<Message, Error>
    where
        B: serde::Serialize + DynamicType,
    {
        self.connection.call_method(Some(NAME), PATH, Some(MANAGER), method, body).await
    }

    /// Makes a call that begins a job, and waits for the job's end.
    async fn job<B>(
        &self,
        what: &'static str,
        unit: &Unit,
        method: &str,
        body: &B,
    ) -> Result<(), SystemdError>
    where
        B: serde::Serialize + DynamicType,
    {
        let result = self.bounded(what, unit, self.result(method, body)).await?;
        match result.as_str() {
            "done" => Ok(()),
            _ => Err(SystemdError::Failed { what, unit: unit.name.clone(), result }),
        }
    }

    /// The result of the job that a call begins.
    async fn result<B>(&self, method: &str, body: &B) -> Result<String, Error>
    where
        B: serde::Serialize + DynamicType,
    {
        let rule = MatchRule::builder()
            .msg_type(MessageType::Signal)
            .path(PATH)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()?;
        // Before the call: the job may be done before its number is known.
        let mut removed = MessageStream::for_match_rule(rule, &self.connection, None).await?;
        let mut early = Vec::new();
        let call = self.call(method, body);
        let mut call = std::pin::pin!(call);
        // Signals are read all the while: a full queue would keep the reply from us.
        let reply = loop {
            tokio::select! {
                reply = &mut call => break reply?,
                signal = removed.next() => early.push(signal.ok_or_else(gone)??),
            }
            if early.len() > MAX_EARLY {
                return Err(Error::Failure("too many jobs end at once".into()));
            }
        };
        let job: OwnedObjectPath = reply.body().deserialize()?;
        let mut early = early.into_iter();
        loop {
            let signal = match early.next() {
                Some(signal) => signal,
                None => removed.next().await.ok_or_else(gone)??,
            };
            // Anybody on a bus may send such a signal.
            if signal.header().sender() != reply.header().sender() {
                continue;
            }
            let body = signal.body();
            let (_, ended, _, result): (u32, OwnedObjectPath, String, String) =
                body.deserialize()?;
            if ended == job {
                return Ok(result);
            }
        }
    }
}

fn gone() -> Error {
    Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionAborted))
}

/// Whether it is the D-Bus error of this name.
fn is(error: &Error, name: &str) -> bool {
    matches!(error, Error::MethodError(of, ..) if of.as_str() == name)
}

fn sent(properties: &[Property]) -> Result<Vec<Sent<'_>>, Error> {
    properties.iter().map(|one| Ok((one.name.as_str(), variant(&one.value)?))).collect()
}

fn variant(value: &Value) -> Result<Variant<'_>, Error> {
    Ok(match value {
        Value::Bool(value) => Variant::from(*value),
        Value::Byte(value) => Variant::from(*value),
        Value::Int16(value) => Variant::from(*value),
        Value::Uint16(value) => Variant::from(*value),
        Value::Int32(value) => Variant::from(*value),
        Value::Uint32(value) => Variant::from(*value),
        Value::Int64(value) => Variant::from(*value),
        Value::Uint64(value) => Variant::from(*value),
        Value::Double(value) => Variant::from(*value),
        Value::Text(text) => Variant::from(text.as_str()),
        Value::List(of, values) => {
            let mut array = Array::new(&signature(of)?);
            values.iter().try_for_each(|value| array.append(variant(value)?))?;
            Variant::from(array)
        }
        Value::Tuple(values) => {
            let begun = Structure::builder();
            let build = values.iter().try_fold(begun, |structure, value| {
                Ok::<_, Error>(structure.append_field(variant(value)?))
            });
            Variant::from(build?.build()?)
        }
    })
}

fn signature(of: &Type) -> Result<Signature, Error> {
    Signature::try_from(of.to_string().as_str()).map_err(Error::from)
}
