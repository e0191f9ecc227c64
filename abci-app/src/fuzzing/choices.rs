//! What is made of a fuzzer's bytes: numbers, texts and keys that mostly fit the field that they are for, and messages of them.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::tx::v1beta1::{AuthInfo, Fee, SignerInfo, TxBody, TxRaw};
use polylink_protocol::market::profile_digest;
use polylink_protocol::market_v1::ModelProfile;
use polylink_protocol::tiqe::VrfKey;
use polylink_protocol::{DENOM, Message as _};

use super::{BLOCKS_BEHIND, STATE};
use crate::bank::Pool;
use crate::testing::key;
use crate::tx::schema::{self, Kind};
use crate::{auth, router};

/// Decisions taken from bytes; once they are used up, always the first.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// One of `count`, at most 65,536.
    pub fn below(&mut self, count: usize) -> usize {
        let low = usize::from(self.byte());
        let choice = if count > 256 { low << 8 | usize::from(self.byte()) } else { low };
        choice % count.max(1)
    }

    pub fn rest(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(self.0.len().min(most));
        self.0 = rest;
        taken
    }

    fn text(&mut self) -> String {
        let n = self.byte() % 8;
        let address = key(if n == 7 { 200 } else { n + 1 }).address();
        match self.below(20) {
            0..=4 => address.account(),
            5..=7 => address.valoper(),
            8 => address.valcons(),
            9 | 10 => DENOM.into(),
            11 => u64::from(self.byte()).to_string(),
            12 => (u64::from(self.byte()) * 1_000_000).to_string(),
            13 => u128::MAX.to_string(),
            14 => "-1".into(),
            15 => "1000000000000000000".into(),
            16 => "0.05".into(),
            17 => "9".repeat(usize::from(self.byte())),
            18 => String::from_utf8_lossy(self.rest(32)).into_owned(),
            _ => String::new(),
        }
    }

    /// What a field of this name mostly holds; now and then something else.
    fn fitting(&mut self, name: &str) -> String {
        let is = |words: &[&str]| words.iter().any(|word| name.contains(word));
        let account = key(self.byte() % 3 + 1).address();
        match self.below(10) {
            0 => self.text(),
            _ if name == "authority" => Pool::Gov.address().account(),
            _ if is(&["provider"]) => account.account(),
            _ if is(&["title", "summary", "metadata", "details"]) => "about something".into(),
            _ if name == "weight" => ["1", "1000000000000000000"][self.below(2)].into(),
            _ if is(&["validator"]) && !is(&["delegator"]) => {
                key(if self.below(4) == 0 { 1 } else { 200 }).address().valoper()
            }
            _ if is(&["denom"]) => DENOM.into(),
            _ if is(&["amount", "bond", "deposit", "price", "cap", "min_self", "reserve"]) => {
                (self.number() % 2_000_000_000).to_string()
            }
            _ if is(&["rate", "share"]) => (u64::from(self.byte()) * 1_000_000_000_000_000).to_string(),
            _ if is(&["endpoint"]) => "https://one.example:8443".into(),
            _ if is(&["id", "name", "moniker", "dtype", "numerics", "quantization"]) => "polylink/one@1".into(),
            _ => account.account(),
        }
    }

    fn number(&mut self) -> u64 {
        let choices = [0, 1, 2, 3, 20, 1_000, u64::from(u32::MAX), i64::MAX as u64, u64::MAX];
        match self.below(16) {
            choice if choice < choices.len() => choices[choice],
            _ => u64::from(self.byte()),
        }
    }

    /// A number that a field of this name mostly holds.
    fn fitting_number(&mut self, name: &str) -> u64 {
        let small = u64::from(self.byte());
        match name {
            _ if self.below(8) == 0 => self.number(),
            "proposal_id" | "session" | "trial" | "report" => small % 8,
            "option" => small % 4 + 1,
            "epoch" => small % (2 + BLOCKS_BEHIND / 20),
            "expiry_epoch" => BLOCKS_BEHIND / 20 + small,
            "tickets" => small % 4 + 1,
            "royalty_bps" | "window" | "prompt" | "cached_prompt" | "completion" => small,
            "context_length" | "capacity_tokens_per_epoch" => 1_000 * (small + 1),
            _ => self.number(),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = [0, 1, 20, 33, 64, 80].get(self.below(24)).copied().unwrap_or(32);
        vec![self.byte(); length]
    }

    /// Bytes that a field of this name mostly holds.
    fn fitting_bytes(&mut self, name: &str) -> Vec<u8> {
        let choice = self.byte() % 3;
        match name {
            _ if self.below(8) == 0 => self.bytes(),
            "profile_digest" | "profiles" => profile_digest(&profile(choice)).to_vec(),
            "tls_key" | "x25519_key" => vec![choice + 1; 32],
            _ if name.ends_with("_key") => VrfKey::from_bytes(&[choice + 1; 32]).public_key().to_vec(),
            _ => self.bytes(),
        }
    }

    /// A message of a known type, its fields filled with what passes for them.
    pub fn message(&mut self, name: &str, depth: usize) -> Vec<u8> {
        if name == "polylink.market.v1.ModelProfile" && self.below(4) > 0 {
            return profile(self.byte() % 3).encode_to_vec();
        }
        let mut out = Vec::new();
        for field in schema::of(name).unwrap_or_default() {
            let times = if field.repeated { self.below(8).div_ceil(5) } else { usize::from(self.below(24) != 0) };
            for _ in 0..times {
                match field.kind {
                    Kind::Text | Kind::Dec => put_bytes(&mut out, field.number, self.fitting(field.name).as_bytes()),
                    Kind::Bytes => put_bytes(&mut out, field.number, &self.fitting_bytes(field.name)),
                    Kind::Long | Kind::ZigZagLong => {
                        put_number(&mut out, field.number, self.fitting_number(field.name))
                    }
                    Kind::Int => {
                        put_number(&mut out, field.number, self.fitting_number(field.name) & u64::from(u32::MAX));
                    }
                    Kind::Bool => put_number(&mut out, field.number, u64::from(self.byte() & 1)),
                    Kind::Float => {
                        put_key(&mut out, field.number, 5);
                        out.extend([self.byte(), self.byte(), self.byte(), self.byte()]);
                    }
                    Kind::Message(name) if depth > 0 => {
                        put_bytes(&mut out, field.number, &self.message(name, depth - 1));
                    }
                    Kind::Any if depth > 0 => put_bytes(&mut out, field.number, &self.any(depth - 1)),
                    Kind::Message(_) | Kind::Any => {}
                }
            }
        }
        out
    }

    fn any(&mut self, depth: usize) -> Vec<u8> {
        let nested = schema::AMINO_KEYS.iter().chain(schema::AMINO_NESTED).map(|(name, _)| *name);
        let names: Vec<&str> = nested.chain(router::type_urls().map(schema::full_name)).collect();
        // Half of them what governance may do.
        let is_governed = |url: &&str| router::message(url).is_some_and(|route| route.governed);
        let governed: Vec<&str> = router::type_urls().filter(is_governed).map(schema::full_name).collect();
        let from = if self.below(2) == 0 { governed } else { names };
        let name = from[self.below(from.len())];
        let mut out = Vec::new();
        put_bytes(&mut out, 1, format!("/{name}").as_bytes());
        put_bytes(&mut out, 2, &self.message(name, depth));
        out
    }

    /// A transaction as simulations have it: messages of any type, a signer without a signature.
    pub fn unsigned(&mut self) -> Vec<u8> {
        let urls: Vec<&'static str> = router::type_urls().collect();
        let url = urls[self.below(urls.len())];
        let value = self.message(schema::full_name(url), 4);
        let body = TxBody { messages: vec![Any { type_url: url.into(), value }], ..Default::default() };
        // What the account has signed so far is mostly known; nobody's first sequence is.
        let signer = router::message(url).and_then(|route| (route.check)(&body.messages[0].value).ok());
        let account = signer.and_then(|signer| auth::account(&*STATE, &signer));
        let sequence = account.map_or(0, |account| account.sequence) + u64::from(self.below(16) == 0);
        let auth_info = AuthInfo {
            signer_infos: vec![SignerInfo { sequence, ..Default::default() }],
            fee: Some(Fee::default()),
            ..Default::default()
        };
        let (body_bytes, auth_info_bytes) = (body.encode_to_vec(), auth_info.encode_to_vec());
        TxRaw { body_bytes, auth_info_bytes, signatures: vec![Vec::new()] }.encode_to_vec()
    }

    /// A message of an unknown type: its first fields hold something, a page request among it.
    pub fn blind(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in 1..=4 {
            match self.below(6) {
                0 => put_number(&mut out, number, self.number()),
                1 | 2 => put_bytes(&mut out, number, self.text().as_bytes()),
                3 => put_bytes(&mut out, number, &self.bytes()),
                4 => {
                    let mut page = Vec::new();
                    put_bytes(&mut page, 1, &self.bytes());
                    put_number(&mut page, 2, self.number());
                    put_number(&mut page, 3, self.number());
                    put_number(&mut page, 4, u64::from(self.byte() & 1));
                    put_number(&mut page, 5, u64::from(self.byte() & 1));
                    put_bytes(&mut out, number, &page);
                }
                _ => {}
            }
        }
        out
    }
}

/// One of three profiles.
fn profile(number: u8) -> ModelProfile {
    let digest = vec![number + 1; 32];
    ModelProfile {
        id: format!("polylink/one@{number}"),
        config_digest: digest.clone(),
        tokenizer_digest: digest.clone(),
        chat_template_digest: digest.clone(),
        generation_config_digest: digest.clone(),
        weights_digest: digest,
        weight_quantization: "none".into(),
        compute_dtype: "f32".into(),
        kv_dtype: "f32".into(),
        numerics: "exact-1".into(),
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    put_key(out, number, 0);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_key(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
