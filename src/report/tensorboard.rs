//! Writes TensorBoard event files: TFRecords of protocol buffers, encoded by hand; scalars only. Main type:
//! [`EventWriter`].
//!
//! Format: tensorflow/core/util/event.proto, framework/summary.proto, and the record layout of lib/io/record_writer.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::run::event::{Event, Observer};

/// Writes one event file. Records are not buffered.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Creates an event file in `folder`. With `resumed_at`, TensorBoard hides the values that older files in the
    /// folder have for later steps.
    pub fn create(folder: &Path, resumed_at: Option<u64>) -> Result<EventWriter> {
        // TensorBoard reads files in the order of their names: seconds first, then a part that makes the name unique.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stem = format!("events.out.tfevents.{:010}.upres.{:09}", time.as_secs(), time.subsec_nanos());
        let path = folder.join(stem);
        let file =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| Error::io(&path, error))?;
        let mut writer = EventWriter { path, file };
        writer.record(&event(wall_time(), 0, |out| text(out, 3, b"brain.Event:2")))?;
        if let Some(step) = resumed_at {
            // SessionLog { status = START } purges all values from this step on.
            writer.record(&event(wall_time(), step + 1, |out| message(out, 7, |out| varint_field(out, 1, 1))))?;
        }
        Ok(writer)
    }

    /// Adds the values of one step.
    fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        self.record(&encode_scalars(wall_time(), step, values))
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&frame(data)).map_err(|error| Error::io(&self.path, error))
    }
}

impl Observer for EventWriter {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Train(train) => {
                let losses = train.losses.iter().map(|(name, value)| (format!("train/{name}"), *value));
                let others = [
                    ("train/lr", train.lr),
                    ("train/grad_norm", train.grad_norm),
                    ("train/epoch", train.epoch),
                    ("speed/images_per_s", train.images_per_s),
                    ("speed/data_wait", train.data_wait),
                    ("speed/memory_gib", train.memory_bytes as f64 / f64::from(1 << 30)),
                ];
                let all = losses.chain(others.map(|(name, value)| (name.to_string(), value))).collect::<Vec<_>>();
                self.scalars(train.global_step, all.iter().map(|(name, value)| (name.as_str(), *value)))
            }
            Event::Eval(eval) => {
                let metrics = eval.metrics.iter().map(|(name, value)| (format!("{}/{name}", eval.split), *value));
                let classes = eval.per_class.iter().map(|(name, value)| (format!("{}_ap/{name}", eval.split), *value));
                // -1 means that there is no ground truth for the metric.
                let all = metrics.chain(classes).filter(|(_, value)| *value >= 0.0).collect::<Vec<_>>();
                self.scalars(eval.global_step, all.iter().map(|(name, value)| (name.as_str(), *value)))
            }
            Event::Start(_) | Event::Stage(_) | Event::Checkpoint(_) | Event::End(_) => Ok(()),
        }
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn encode_scalars<'a>(wall_time: f64, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<u8> {
    event(wall_time, step, |out| {
        message(out, 5, |summary| {
            for (tag, value) in values {
                message(summary, 1, |one| {
                    text(one, 1, tag.as_bytes());
                    one.push(2 << 3 | FIXED32);
                    one.extend((value as f32).to_le_bytes());
                });
            }
        });
    })
}

/// A record: length, checksum of the length, data, checksum of the data.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [&length, &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()];
    parts.concat()
}

/// CRC-32C with the mask of TFRecords, because the plain CRC of bytes that contain CRCs is weak.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// Encodes `Event { wall_time, step, … }`; `body` adds the other fields.
fn event(wall_time: f64, step: u64, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![1 << 3 | FIXED64];
    out.extend(wall_time.to_le_bytes());
    varint_field(&mut out, 2, step);
    body(&mut out);
    out
}

fn varint_field(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3 | VARINT);
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn text(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | BYTES);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn message(out: &mut Vec<u8>, field: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    body(&mut inner);
    text(out, field, &inner);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a field of a message.
    #[derive(Debug, PartialEq)]
    enum Field<'a> {
        Varint(u64),
        Fixed64(u64),
        Fixed32(u32),
        Bytes(&'a [u8]),
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        unreachable!()
    }

    fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes);
            let mut take = |count: usize| {
                let (head, rest) = bytes.split_at(count);
                bytes = rest;
                head
            };
            let field = match key & 7 {
                0 => Field::Varint(take_varint(&mut bytes)),
                1 => Field::Fixed64(u64::from_le_bytes(take(8).try_into().unwrap())),
                5 => Field::Fixed32(u32::from_le_bytes(take(4).try_into().unwrap())),
                2 => {
                    let count = take_varint(&mut bytes) as usize;
                    let (head, rest) = bytes.split_at(count);
                    bytes = rest;
                    Field::Bytes(head)
                }
                other => panic!("wire type {other}"),
            };
            all.push((key >> 3, field));
        }
        all
    }

    fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], masked_crc(&bytes[..8]).to_le_bytes());
            let data = &bytes[12..12 + length];
            assert_eq!(bytes[12 + length..16 + length], masked_crc(data).to_le_bytes());
            all.push(data);
            bytes = &bytes[16 + length..];
        }
        all
    }

    #[test]
    fn checksum_is_tensorflows() {
        // crc32c of 32 zero bytes is 0x8a9136aa (RFC 3720, B.4), masked as in tensorflow/core/lib/hash/crc32c.h.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let crc = 0x8a91_36aa_u32;
        assert_eq!(masked_crc(&[0; 32]), crc.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_record_to_the_byte() {
        // The reference encoder's bytes of
        // Event { wall_time: 1.5, step: 300, summary: { value: { tag: "a/b", simple_value: 0.25 } } }.
        let want = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x10, 0xac, 0x02, 0x2a, 0x0c, 0x0a, 0x0a][..],
            &[0x0a, 0x03, b'a', b'/', b'b', 0x15, 0, 0, 0x80, 0x3e],
        ];
        assert_eq!(encode_scalars(1.5, 300, [("a/b", 0.25)]), want.concat());
    }

    #[test]
    fn a_file_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = EventWriter::create(folder.path(), None).unwrap();
        let long = "x".repeat(300);
        first.scalars(1 << 40, [("loss", 0.5), (long.as_str(), f64::NAN)]).unwrap();
        let bytes = std::fs::read(&first.path).unwrap();
        let all = records(&bytes);
        assert_eq!(fields(all[0])[2], (3, Field::Bytes(b"brain.Event:2")));
        let event = fields(all[1]);
        assert_eq!(event[1], (2, Field::Varint(1 << 40)));
        let (5, Field::Bytes(summary)) = event[2] else { panic!("{event:?}") };
        let values = fields(summary);
        assert_eq!(values.len(), 2);
        let (1, Field::Bytes(value)) = values[0] else { panic!() };
        assert_eq!(fields(value), [(1, Field::Bytes(b"loss")), (2, Field::Fixed32(0.5f32.to_bits()))]);
        let (1, Field::Bytes(value)) = values[1] else { panic!() };
        assert_eq!(fields(value)[0], (1, Field::Bytes(long.as_bytes())));
        let (_, Field::Fixed64(time)) = event[0] else { panic!() };
        assert!(f64::from_bits(time) > 1.6e9);

        let second = EventWriter::create(folder.path(), Some(7)).unwrap();
        let bytes = std::fs::read(&second.path).unwrap();
        let session = fields(records(&bytes)[1]);
        assert_eq!(session[1..], [(2, Field::Varint(8)), (7, Field::Bytes(&[8, 1]))]);
    }
}
