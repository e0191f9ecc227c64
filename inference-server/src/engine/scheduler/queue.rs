//! Who waits, and whose turn it is: priority, then fair share, then arrival.
//!
//! A **flow** is a tenant at one priority. Its *served* counts the rows that it was given (the virtual token counter of
//! Sheng et al., "Fairness in serving LLMs", OSDI 2024). The highest priority of which anything waits goes first; in it
//! the flow that was served least; in the flow the earliest arrival. Everything takes O(log n) and allocates nothing.
//!
//! A flow that begins to wait starts at its priority's **level** at least, so that an absence earns nothing; what it was
//! served beyond that it keeps, so that going away for a moment pays no debt. The level is the least served of those that
//! wait; while others wait it also rises by an equal part of what is given, so that an endless row of newcomers starves
//! nobody; and what is given while nobody waits takes nothing from anybody, so the level goes along. An absent flow is
//! forgotten when its place is needed, the one that left first.

use std::collections::HashMap;

use super::SequenceId;
use super::forest::{Forest, Heap};

/// Priorities lie in `-PRIORITY_MAX..=PRIORITY_MAX`.
pub const PRIORITY_MAX: i32 = 100;

/// Number of a flow; valid while a sequence of it is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowId(u32);

/// Where a flow's node in `flows` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In no heap: its sequences all run or are parked, or it was never used.
    Nowhere,
    /// Among the flows of its class that wait, by (served, arrival).
    Ready,
    /// Among the absent ones, by departure.
    Absent,
}

#[derive(Debug)]
struct Flow {
    name: ([u8; 32], i32),
    served: u64,
    /// Sequences that are live.
    live: u32,
    place: Place,
    /// Those that wait.
    waiting: Heap,
}

#[derive(Clone, Debug)]
struct Class {
    /// Flows of which something waits.
    ready: Heap,
    /// Flows that are live.
    live: u32,
    /// Where a flow that begins to wait starts at least.
    level: u64,
    /// Rows that are not in the level yet.
    rest: u64,
}

/// The waiting sequences of all flows.
#[derive(Debug)]
pub(super) struct Queue {
    /// By priority, lowest first.
    classes: Vec<Class>,
    flows: Vec<Flow>,
    flows_max: usize,
    by_name: HashMap<([u8; 32], i32), u32>,
    absent: Heap,
    departures: u64,
    /// Waiting sequences by arrival, a heap per flow.
    sequences: Forest<u64>,
    by_turn: Forest<(u64, u64)>,
    waiting: usize,
}

impl Queue {
    /// For so many live sequences; all memory is taken here.
    pub fn new(sequences_max: usize) -> Self {
        let class = Class { ready: Heap::EMPTY, live: 0, level: 0, rest: 0 };
        Self {
            classes: vec![class; 2 * PRIORITY_MAX as usize + 1],
            flows: Vec::with_capacity(sequences_max),
            // A live flow has a live sequence.
            flows_max: sequences_max,
            // Twice as many places as names: removed entries are then cleared in place, without growing.
            by_name: HashMap::with_capacity(2 * sequences_max + 16),
            absent: Heap::EMPTY,
            departures: 0,
            sequences: Forest::new(sequences_max),
            by_turn: Forest::new(sequences_max),
            waiting: 0,
        }
    }

    /// Sequences that wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    fn class(&mut self, priority: i32) -> &mut Class {
        &mut self.classes[(priority + PRIORITY_MAX) as usize]
    }

    fn flow(&self, flow: FlowId) -> &Flow {
        &self.flows[flow.0 as usize]
    }

    /// Counts a live sequence in.
    pub fn enter(&mut self, tenant: [u8; 32], priority: i32) -> FlowId {
        let name = (tenant, priority);
        let flow = match self.by_name.get(&name) {
            Some(&known) => {
                if self.flows[known as usize].place == Place::Absent {
                    self.by_turn.remove(&mut self.absent, known);
                }
                known
            }
            None => self.place_for(name),
        };
        let entry = &mut self.flows[flow as usize];
        if entry.live == 0 {
            entry.place = Place::Nowhere;
            self.class(priority).live += 1;
        }
        self.flows[flow as usize].live += 1;
        FlowId(flow)
    }

    /// A place for a flow that is not known: a new one, else that of the flow that has been absent longest.
    fn place_for(&mut self, name: ([u8; 32], i32)) -> u32 {
        let flow = Flow { name, served: 0, live: 0, place: Place::Nowhere, waiting: Heap::EMPTY };
        let place = if self.flows.len() < self.flows_max {
            self.flows.push(flow);
            self.flows.len() as u32 - 1
        } else {
            let oldest = self.absent.top().expect("a live flow has a live sequence, and there is room for one more");
            self.by_turn.remove(&mut self.absent, oldest);
            self.by_name.remove(&self.flows[oldest as usize].name);
            self.flows[oldest as usize] = flow;
            oldest
        };
        self.by_name.insert(name, place);
        place
    }

    /// Counts a live sequence, which does not wait any more, out.
    pub fn leave(&mut self, flow: FlowId) {
        let entry = &mut self.flows[flow.0 as usize];
        entry.live -= 1;
        let (last, priority) = (entry.live == 0, entry.name.1);
        if last {
            self.class(priority).live -= 1;
            self.flows[flow.0 as usize].place = Place::Absent;
            self.by_turn.insert(&mut self.absent, flow.0, (self.departures, 0));
            self.departures += 1;
        }
    }

    /// Rows that a flow was given.
    pub fn served(&self, flow: FlowId) -> u64 {
        self.flow(flow).served
    }

    /// Counts rows that a flow is given; its turn changes with [`Queue::settle`].
    pub fn charge(&mut self, flow: FlowId, rows: usize) {
        let entry = &mut self.flows[flow.0 as usize];
        let class = &mut self.classes[(entry.name.1 + PRIORITY_MAX) as usize];
        entry.served += rows as u64;
        class.rest += rows as u64;
        class.level += class.rest / u64::from(class.live);
        class.rest %= u64::from(class.live);
        if class.ready == Heap::EMPTY {
            class.level = class.level.max(entry.served);
        }
    }

    /// Puts a flow where its served rows and its first sequence belong.
    pub fn settle(&mut self, flow: FlowId) {
        let Self { classes, flows, sequences, by_turn, .. } = self;
        let entry = &mut flows[flow.0 as usize];
        let ready = &mut classes[(entry.name.1 + PRIORITY_MAX) as usize].ready;
        let turn = entry.waiting.top().map(|first| (entry.served, sequences.key(first)));
        if entry.place == Place::Ready {
            if turn == Some(by_turn.key(flow.0)) {
                return;
            }
            by_turn.remove(ready, flow.0);
            entry.place = Place::Nowhere;
        }
        if let Some(turn) = turn {
            by_turn.insert(ready, flow.0, turn);
            entry.place = Place::Ready;
        }
    }

    /// Lets a sequence of a flow, which was live or entered before, wait for its first start.
    pub fn push_new(&mut self, flow: FlowId, id: SequenceId, arrival: u64) {
        let entry = &mut self.flows[flow.0 as usize];
        if entry.waiting == Heap::EMPTY {
            let class = &mut self.classes[(entry.name.1 + PRIORITY_MAX) as usize];
            let least = class.ready.top().map_or(0, |flow| self.by_turn.key(flow).0);
            class.level = class.level.max(least);
            entry.served = entry.served.max(class.level);
        }
        self.push(flow, id, arrival);
    }

    /// Lets a sequence of a flow wait.
    pub fn push(&mut self, flow: FlowId, id: SequenceId, arrival: u64) {
        self.sequences.insert(&mut self.flows[flow.0 as usize].waiting, id.0, arrival);
        self.waiting += 1;
        self.settle(flow);
    }

    /// Takes a sequence that waits out.
    pub fn remove(&mut self, flow: FlowId, id: SequenceId) {
        self.sequences.remove(&mut self.flows[flow.0 as usize].waiting, id.0);
        self.waiting -= 1;
        self.settle(flow);
    }

    /// Whose turn it is.
    pub fn first(&self) -> Option<SequenceId> {
        if self.waiting == 0 {
            return None;
        }
        let flow = self.classes.iter().rev().find_map(|class| class.ready.top())?;
        self.flows[flow as usize].waiting.top().map(SequenceId)
    }

    /// Counts everything again.
    ///
    /// # Panics
    /// When anything was lost or is held twice.
    pub fn check(&self, live: usize) {
        let mut waiting = 0;
        for (index, flow) in self.flows.iter().enumerate() {
            assert_eq!(self.by_name.get(&flow.name), Some(&(index as u32)), "name of flow {index}");
            let own = self.sequences.check(flow.waiting);
            assert!(own <= flow.live as usize, "who waits is live");
            assert_eq!(flow.place == Place::Ready, own > 0, "a flow is ready while anything of it waits");
            assert_eq!(flow.place == Place::Absent, flow.live == 0, "a flow is absent while nothing of it is live");
            waiting += own;
        }
        assert_eq!(waiting, self.waiting, "waiting sequences");
        assert_eq!(self.flows.iter().map(|flow| flow.live as usize).sum::<usize>(), live, "live sequences of flows");
        let flows = self.flows.iter().filter(|flow| flow.live > 0).count();
        assert_eq!(self.classes.iter().map(|class| class.live as usize).sum::<usize>(), flows, "live flows");
        let counted = |place| self.flows.iter().filter(|flow| flow.place == place).count();
        let ready = self.classes.iter().map(|class| self.by_turn.check(class.ready)).sum::<usize>();
        assert_eq!((ready, self.by_turn.check(self.absent)), (counted(Place::Ready), counted(Place::Absent)), "heaps");
    }
}
