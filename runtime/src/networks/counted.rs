//! What is known of containers' frames: asked of their supervisors, and read from the rules.
//!
//! A count never falls while a container lives. So what may become less known is looked at
//! first: the supervisor is asked before the record is read, and the rules come last. Who ends
//! in between leaves a gap, and not a smaller number.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::attach::{MAX_ENDS, REFUSED};
use super::counts::Told;
use super::rules::{self, ByChain, Refused};
use super::{NetworkError, Traffic, counts, record};
use crate::dirs::Dirs;
use crate::files::read_json;

/// Supervisors that are asked at once. One that does not answer holds one up for some seconds.
const AT_ONCE: usize = 16;

/// What is known of a container's frames.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// Since its start; of one that has ended, until its end.
    pub refused: Option<Refused>,
    /// Since its start; not known after its end.
    pub traffic: Option<Traffic>,
}

/// A container that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    /// Its id.
    pub id: &'a str,
    /// It does not run.
    pub ended: bool,
}

/// What is known of many.
#[derive(Debug)]
pub struct All {
    /// Of each, in the order in which they were asked for.
    pub each: Vec<Result<Counted, NetworkError>>,
    /// Why nothing is known of what rules have refused, although there are rules.
    pub rules: Result<(), NetworkError>,
}

/// A container's part of it, but for its rules.
struct Asked {
    told: Option<Told>,
    has_rules: bool,
    /// What was written down at its end.
    kept: Option<Refused>,
}

impl Asked {
    fn of(dirs: &Dirs, Whose { id, ended }: Whose) -> Result<Asked, NetworkError> {
        let lib = dirs.container_lib(id);
        let boot = record::this_boot()?;
        let told = counts::ask(&dirs.sandbox(id));
        let record = record::read(&lib)?;
        let has_rules = record.is_some_and(|record| record.rules && record.is_of(&boot));
        // Without it, it begins or ends at this moment, or its supervisor does not answer.
        let kept = match (has_rules, &told) {
            (false, None) if ended => Some(read_json(&lib.join(REFUSED))?.unwrap_or_default()),
            _ => None,
        };
        Ok(Asked { told, has_rules, kept })
    }

    /// `by_rules`: what these have refused, if that is known.
    fn with(self, by_rules: Option<Refused>) -> Counted {
        let traffic = self.told.as_ref().and_then(|told| told.traffic);
        let told = self.told.map(|told| told.refused);
        let refused = if self.has_rules {
            by_rules.map(|refused| refused.and(told.unwrap_or_default()))
        } else {
            told.or(self.kept)
        };
        Counted { refused, traffic }
    }
}

/// Looks what was refused to a container, and what passed.
///
/// # Errors
/// When its files cannot be read. Who does not answer leaves gaps.
pub fn counted(dirs: &Dirs, whose: Whose) -> Result<Counted, NetworkError> {
    let asked = Asked::of(dirs, whose)?;
    let by_rules = asked.has_rules.then(|| rules::refused(whose.id, MAX_ENDS)).flatten();
    Ok(asked.with(by_rules))
}

/// The same of many: several at a time, and with one listing of each table of rules for all.
pub fn counted_all(dirs: &Dirs, whose: &[Whose]) -> All {
    let asked = at_once(whose, AT_ONCE, |whose| Asked::of(dirs, *whose));
    // Where nobody has rules there may be no nft.
    let any = asked.iter().flatten().any(|asked| asked.has_rules);
    let (by_chain, rules) = match any.then(rules::refused_to_all).transpose() {
        Ok(by_chain) => (by_chain.unwrap_or_default(), Ok(())),
        Err(error) => (ByChain::default(), Err(error)),
    };
    let with = |(asked, whose): (Result<Asked, _>, &Whose)| {
        asked.map(|asked| asked.with(by_chain.of(whose.id)))
    };
    All { each: asked.into_iter().zip(whose).map(with).collect(), rules }
}

/// Does `work` with each of `all`, up to `most` at a time; the results in the same order.
fn at_once<T: Sync, R: Send>(all: &[T], most: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let take = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = all.get(index) else { return };
            let result = work(one);
            done.lock().unwrap_or_else(PoisonError::into_inner).insert(index, result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..most.min(all.len()) {
            // Where no thread can be had, there are fewer.
            if std::thread::Builder::new().spawn_scoped(scope, take).is_err() {
                break;
            }
        }
        take();
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn each_is_done_once_and_several_at_a_time() {
        let all: Vec<usize> = (0..100).collect();
        assert_eq!(
            at_once(&all, 7, |one| one * 2),
            all.iter().map(|one| one * 2).collect::<Vec<_>>()
        );
        assert!(at_once(&[], 7, |_: &u8| ()).is_empty());
        // Ends only if four are at work together.
        let barrier = Barrier::new(4);
        let leaders = at_once(&[(); 4], 9, |()| barrier.wait().is_leader());
        assert_eq!(leaders.iter().filter(|leader| **leader).count(), 1);
    }

    #[test]
    fn gaps_are_no_zeros() {
        let told = |host| Told {
            refused: Refused { host, guard: Some(1), ..Refused::default() },
            traffic: Some(Traffic::default()),
        };
        let asked = |told, has_rules, kept| Asked { told, has_rules, kept };
        let rules = Refused { host: 2, ..Refused::default() };
        let both = asked(Some(told(3)), true, None).with(Some(rules.clone()));
        assert_eq!(both.refused.map(|it| (it.host, it.guard)), Some((5, Some(1))));
        let without = asked(Some(told(3)), true, None).with(None);
        assert_eq!((without.refused, without.traffic.is_some()), (None, true), "rules are gone");
        let silent = asked(None, true, None).with(Some(rules.clone()));
        assert_eq!(silent.refused.map(|it| (it.host, it.guard)), Some((2, None)));
        // Rules of a chain that are another life's do not count.
        let passt = asked(Some(told(3)), false, None).with(Some(rules.clone()));
        assert_eq!(passt.refused.map(|it| it.host), Some(3));
        assert_eq!(asked(None, false, Some(rules.clone())).with(None).refused, Some(rules));
        assert_eq!(asked(None, false, None).with(None), Counted::default());
    }

    #[test]
    fn one_that_is_in_no_network_was_refused_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { run: dir.path().join("run"), lib: dir.path().join("lib") };
        let id = "a".repeat(64);
        let whose = |ended| Whose { id: &id, ended };
        let none = Counted { refused: Some(Refused::default()), traffic: None };
        assert_eq!(counted(&dirs, whose(true)).unwrap(), none);
        assert_eq!(counted(&dirs, whose(false)).unwrap(), Counted::default(), "nobody tells");
        // One whose files cannot be read is no reason to tell nothing of the others.
        let broken = "b".repeat(64);
        std::fs::create_dir_all(dirs.container_lib(&broken)).unwrap();
        std::fs::write(dirs.container_lib(&broken).join("attached.json"), "{").unwrap();
        let all = counted_all(&dirs, &[Whose { id: &broken, ended: true }, whose(true)]);
        let error = all.each[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("attached.json"), "{error}");
        assert_eq!(all.each[1].as_ref().unwrap(), &none);
        assert!(all.rules.is_ok(), "nobody has any");
    }
}
