//! The pool of KV blocks: who holds which, what can be reused, and what is given up first. Pure: block numbers in, block
//! numbers out; the bytes belong to the backend.
//!
//! * A block is **free** (nothing of worth), **cached** (held by nobody, its contents are known and reusable) or **in
//!   use** (held by at least one sequence). `free + cached + in use = total`, always.
//! * A full block is named by a hash chain, SHA-256 over (name of the block before, its tokens); the chain starts at a
//!   salt, so tenants do not share. On a hit the tokens and the parent are compared again: a collision shares nothing.
//! * A cached block keeps its name until it is taken for something else: eviction costs nothing. The least recently
//!   released goes first (intrusive list, O(1)); sequences release their tails before their heads, so a shared head
//!   outlives what hangs on it.
//! * Two sequences that computed the same block side by side are folded onto one: legitimate because a block's bits are
//!   a function of its chain alone (batch invariance).

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// Number of a block, as it stands in block tables.
pub type BlockId = u32;

/// Name of a full block: of all tokens up to its end, and the salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChainHash([u8; 32]);

impl ChainHash {
    /// Where the chain of everybody with this salt starts.
    pub fn root(salt: &[u8; 32]) -> Self {
        Self(Sha256::new().chain_update(b"polylink/kv-chain-root/v1\0").chain_update(salt).finalize().into())
    }

    fn next(self, tokens: &[u32]) -> Self {
        let mut hasher = Sha256::new().chain_update(b"polylink/kv-chain/v1\0").chain_update(self.0);
        for token in tokens {
            hasher.update(token.to_be_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// The blocks of one sequence, in order of positions. Owned by the sequence, changed by the pool alone.
#[derive(Debug)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// The first so many blocks are full and named.
    named: usize,
    /// Name of the last named block, or the root.
    chain: ChainHash,
    root: ChainHash,
}

impl BlockTable {
    /// Empty, with room for `blocks_max`.
    pub fn new(root: ChainHash, blocks_max: usize) -> Self {
        Self { blocks: Vec::with_capacity(blocks_max), named: 0, chain: root, root }
    }

    /// The empty table's chain starts elsewhere from now on: keys of the same tokens are others.
    pub fn start_apart(&mut self) {
        assert!(self.blocks.is_empty(), "blocks of the chain before were given back");
        self.root = ChainHash::root(&self.root.0);
        self.chain = self.root;
    }

    /// Entry `i` holds positions `i × block_tokens ..`.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }
}

/// "No block" in the intrusive list.
const NONE: BlockId = BlockId::MAX;

#[derive(Debug)]
struct Block {
    references: u32,
    /// Its own name and its parent's, while its contents are known.
    name: Option<(ChainHash, ChainHash)>,
    /// Neighbours in the list of cached blocks.
    older: BlockId,
    newer: BlockId,
}

/// How many blocks are in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCounts {
    /// Nothing of worth in them.
    pub free: usize,
    /// Reusable, held by nobody.
    pub cached: usize,
    /// Held by a sequence.
    pub in_use: usize,
}

/// All blocks of one backend.
#[derive(Debug)]
pub struct KvPool {
    block_tokens: usize,
    blocks: Vec<Block>,
    /// `[block][block_tokens]`: the tokens of named blocks.
    tokens: Vec<u32>,
    by_name: HashMap<ChainHash, BlockId>,
    free: Vec<BlockId>,
    oldest: BlockId,
    newest: BlockId,
    cached: usize,
}

impl KvPool {
    /// `blocks` blocks of `block_tokens` positions; all memory is taken here.
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        assert!(block_tokens > 0 && blocks < NONE as usize, "the backend's layout and the configuration are checked");
        Self {
            block_tokens,
            blocks: (0..blocks).map(|_| Block { references: 0, name: None, older: NONE, newer: NONE }).collect(),
            tokens: vec![0; blocks * block_tokens],
            // Twice as many places as names: removed entries are then cleared in place, without growing.
            by_name: HashMap::with_capacity(2 * blocks + 16),
            free: (0..blocks as BlockId).rev().collect(),
            oldest: NONE,
            newest: NONE,
            cached: 0,
        }
    }

    /// Positions per block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that can be had now: free and cached ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached
    }

    /// How many blocks are in which state.
    pub fn counts(&self) -> BlockCounts {
        let (free, cached) = (self.free.len(), self.cached);
        BlockCounts { free, cached, in_use: self.blocks.len() - free - cached }
    }

    /// Takes the longest known prefix of `tokens` into an empty table and returns how many tokens it covers: whole
    /// blocks, and never the last token, since its logits are wanted.
    pub fn match_prefix(&mut self, table: &mut BlockTable, tokens: &[u32]) -> usize {
        assert!(table.blocks.is_empty(), "prefixes are looked up before anything is computed");
        let whole = tokens.len().saturating_sub(1) / self.block_tokens;
        for tokens in tokens.chunks_exact(self.block_tokens).take(whole) {
            let name = table.chain.next(tokens);
            let Some(block) = self.find(name, table.chain, tokens) else { break };
            self.hold(block);
            table.blocks.push(block);
            table.named += 1;
            table.chain = name;
        }
        table.blocks.len() * self.block_tokens
    }

    /// The block of this name, if its parent and tokens are what the name says.
    fn find(&self, name: ChainHash, parent: ChainHash, tokens: &[u32]) -> Option<BlockId> {
        let &block = self.by_name.get(&name)?;
        let same = self.blocks[block as usize].name == Some((name, parent)) && self.tokens_of(block) == tokens;
        same.then_some(block)
    }

    fn tokens_of(&self, block: BlockId) -> &[u32] {
        &self.tokens[block as usize * self.block_tokens..][..self.block_tokens]
    }

    /// Extends the table until it covers `positions`; false when the blocks run out, the table then covers less.
    pub fn grow(&mut self, table: &mut BlockTable, positions: usize) -> bool {
        while table.blocks.len() * self.block_tokens < positions {
            let Some(block) = self.take() else { return false };
            table.blocks.push(block);
        }
        true
    }

    /// Positions that the table covers.
    pub fn covered(&self, table: &BlockTable) -> usize {
        table.blocks.len() * self.block_tokens
    }

    /// Names the blocks that have become full: `tokens[..computed]` have their keys and values in the cache. Where the
    /// same block is known already, the table's is given back and the known one is held instead.
    pub fn name_full_blocks(&mut self, table: &mut BlockTable, tokens: &[u32], computed: usize) {
        while (table.named + 1) * self.block_tokens <= computed {
            let index = table.named;
            let block = table.blocks[index];
            let contents = &tokens[index * self.block_tokens..][..self.block_tokens];
            let parent = table.chain;
            let name = parent.next(contents);
            if let Some(known) = self.find(name, parent, contents) {
                assert_ne!(known, block, "a table's unnamed blocks have no name");
                self.hold(known);
                self.release_block(block);
                table.blocks[index] = known;
            } else if !self.by_name.contains_key(&name) {
                self.tokens[block as usize * self.block_tokens..][..self.block_tokens].copy_from_slice(contents);
                self.blocks[block as usize].name = Some((name, parent));
                self.by_name.insert(name, block);
            }
            table.named += 1;
            table.chain = name;
        }
    }

    /// Gives all blocks of a table back, tail first, and empties it.
    pub fn release(&mut self, table: &mut BlockTable) {
        while let Some(block) = table.blocks.pop() {
            self.release_block(block);
        }
        table.named = 0;
        table.chain = table.root;
    }

    /// A block to write: a free one, else the cached one that was released longest ago.
    fn take(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None if self.oldest != NONE => {
                let block = self.oldest;
                self.unlink(block);
                if let Some((name, _)) = self.blocks[block as usize].name.take() {
                    self.by_name.remove(&name);
                }
                block
            }
            None => return None,
        };
        let entry = &mut self.blocks[block as usize];
        assert!(entry.references == 0 && entry.name.is_none(), "a block that is taken belongs to nobody");
        entry.references = 1;
        Some(block)
    }

    fn hold(&mut self, block: BlockId) {
        if self.blocks[block as usize].references == 0 {
            self.unlink(block);
        }
        self.blocks[block as usize].references += 1;
    }

    fn release_block(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        assert!(entry.references > 0, "a block is released by its holders only");
        entry.references -= 1;
        if entry.references == 0 {
            match entry.name {
                Some(_) => self.link_newest(block),
                None => self.free.push(block),
            }
        }
    }

    fn link_newest(&mut self, block: BlockId) {
        let older = std::mem::replace(&mut self.newest, block);
        let entry = &mut self.blocks[block as usize];
        entry.older = older;
        entry.newer = NONE;
        match older {
            NONE => self.oldest = block,
            older => self.blocks[older as usize].newer = block,
        }
        self.cached += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Block { older, newer, .. } = self.blocks[block as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.blocks[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.blocks[newer as usize].older = older,
        }
        self.cached -= 1;
    }

    /// Counts everything again, over all blocks and the tables of all live sequences.
    ///
    /// # Panics
    /// When a count, a reference, a name or the list is wrong: the process must not go on computing.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut references = vec![0; self.blocks.len()];
        for table in tables {
            assert!(table.named <= table.blocks.len(), "named blocks are blocks");
            table.blocks.iter().for_each(|&block| references[block as usize] += 1);
        }
        let (mut cached, mut in_use, mut named) = (0, 0, 0);
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.references, references[id], "references of block {id}");
            in_use += usize::from(block.references > 0);
            cached += usize::from(block.references == 0 && block.name.is_some());
            if let Some((name, _)) = block.name {
                named += 1;
                assert_eq!(self.by_name.get(&name), Some(&(id as BlockId)), "name of block {id}");
            }
        }
        assert_eq!(named, self.by_name.len(), "every name belongs to a block");
        assert_eq!(
            BlockCounts { free: self.free.len(), cached, in_use },
            self.counts(),
            "free + cached + in use = total"
        );
        let (mut linked, mut at) = (0, self.oldest);
        while at != NONE {
            assert_eq!(self.blocks[at as usize].references, 0, "a cached block is held by nobody");
            (linked, at) = (linked + 1, self.blocks[at as usize].newer);
        }
        assert_eq!(linked, cached, "the list holds exactly the cached blocks");
    }
}

#[cfg(test)]
#[path = "kv_pool/tests.rs"]
mod tests;
