//! Duties under way, each a task of its own, so that none waits for another.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use polylink_protocol::Digest;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::duty::Duty;
use crate::JudgeError;

/// Names a duty: it is not begun while one of this name is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// Of a round: (epoch, profile).
    Round(u64, Digest, Duty),
    /// Scoring of a round: (epoch, profile).
    Score(u64, Digest),
    /// Of a trial.
    Vote(u64),
}

type Running = JoinHandle<Result<(), JudgeError>>;

/// The tasks; dropping them ends them, which loses nothing: what counts is in the journal or on chain.
#[derive(Default)]
pub(super) struct Tasks {
    /// By number, since one task may have several names.
    running: BTreeMap<u64, (Vec<Key>, Running)>,
    next: u64,
    ended: Arc<Notify>,
}

impl Tasks {
    /// Whether a duty is under way.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.running.values().any(|(keys, _)| keys.contains(key))
    }

    /// How many duties under way are votes.
    pub(super) fn votes(&self) -> usize {
        self.running.values().filter(|(keys, _)| matches!(keys[..], [Key::Vote(_)])).count()
    }

    /// Begins a task for the duties of these names.
    pub(super) fn begin(
        &mut self,
        keys: Vec<Key>,
        task: impl Future<Output = Result<(), JudgeError>> + Send + 'static,
    ) {
        let ended = Arc::clone(&self.ended);
        let running = tokio::spawn(async move {
            let result = task.await;
            ended.notify_one();
            result
        });
        self.running.insert(self.next, (keys, running));
        self.next += 1;
    }

    /// Resolves when a task has ended since the last time.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Takes out what has ended.
    pub(super) async fn reap(&mut self) -> Vec<(Vec<Key>, Result<(), JudgeError>)> {
        let over: Vec<u64> = self.running.iter().filter(|(_, (_, t))| t.is_finished()).map(|(id, _)| *id).collect();
        let mut results = Vec::with_capacity(over.len());
        for id in over {
            let Some((keys, task)) = self.running.remove(&id) else { continue };
            let result = task.await.unwrap_or_else(|e| Err(JudgeError::Task(e.to_string())));
            results.push((keys, result));
        }
        results
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_duty_that_hangs_or_panics_holds_up_no_other() {
        let mut tasks = Tasks::default();
        let (hanging, failing) = (Key::Vote(1), Key::Score(2, Digest([0; 32])));
        tasks.begin(vec![hanging], std::future::pending());
        tasks.begin(vec![failing], async { panic!("a duty's defect") });
        tasks.begin(vec![Key::Vote(3), Key::Vote(4)], async { Ok(()) });
        assert!(tasks.has(&hanging) && tasks.has(&failing) && tasks.has(&Key::Vote(4)));
        let mut over = Vec::new();
        while over.len() < 2 {
            tokio::task::yield_now().await;
            over.extend(tasks.reap().await);
        }
        over.sort_by_key(|(keys, _)| keys.len());
        assert!(matches!(&over[0], (keys, Err(JudgeError::Task(_))) if *keys == [failing]), "{over:?}");
        assert!(matches!(over[1], (_, Ok(()))), "{over:?}");
        assert!(tasks.has(&hanging) && !tasks.has(&failing) && !tasks.has(&Key::Vote(3)));
        assert_eq!(tasks.votes(), 1);
    }
}
