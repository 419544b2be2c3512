//! Records: however the stream is cut, the same comes out of it, and no more memory is taken than
//! was allowed.

use std::io::Read;

use super::{Cut, Input};
use crate::record::{Heartbeat, RecordReader, StreamReader, StreamRecordHeader};

/// The largest payload taken.
const PAYLOAD_MAX: u64 = 300;

#[derive(Debug, PartialEq)]
enum Event {
    Record(StreamRecordHeader),
    Payload(Vec<u8>),
    Part(Vec<u8>),
    Refused,
    End,
}

pub fn target(data: &[u8]) {
    let mut input = Input(data);
    let lengths = input.bytes(5);
    // What is done with each record: bits of this number.
    let ways = input.u32();
    codecs(input.0);
    let stream = if input.flag() { input.0.to_vec() } else { made(&mut input) };
    let whole = events(&mut RecordReader::new(stream.as_slice()), ways);
    let cut = events(&mut RecordReader::new(Cut::new(&stream, lengths)), ways);
    assert_eq!(whole, cut);
    let slow = events(&mut RecordReader::new(Cut::new(&stream, &[1])), ways);
    assert_eq!(whole, slow);
}

fn codecs(bytes: &[u8]) {
    if let Ok(header) = StreamRecordHeader::decode(bytes) {
        assert_eq!(header.encode(), bytes[..StreamRecordHeader::SIZE]);
    }
    let beat = bytes.get(..Heartbeat::SIZE).unwrap_or(bytes);
    if let Ok(beat) = Heartbeat::decode(beat) {
        assert_eq!(beat.encode(), bytes[..Heartbeat::SIZE]);
        let record = beat.encode_record();
        assert_eq!(StreamRecordHeader::decode(&record).unwrap().pos(), beat.pos);
    }
}

/// Records whose headers are right more often than by chance.
fn made(input: &mut Input) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() {
        let payload = input.short();
        let mut header = [0; StreamRecordHeader::SIZE];
        header[3] = input.byte() % 5;
        header[7] = input.byte() % 4;
        header[8..32].copy_from_slice(&input.array::<24>());
        let size = match input.byte() {
            0 => input.u64(),
            lie @ 1..4 => payload.len() as u64 + u64::from(lie),
            _ => payload.len() as u64,
        };
        header[32..40].copy_from_slice(&size.to_be_bytes());
        stream.extend_from_slice(&header);
        stream.extend_from_slice(payload);
    }
    stream
}

/// What a client gets to see; `ways` says whether it reads payloads, in part or not at all.
fn events<R: Read>(reader: &mut RecordReader<R>, ways: u32) -> Vec<Event> {
    let mut events = Vec::new();
    for at in 0..10_000 {
        match reader.next() {
            Ok(Some(header)) => events.push(Event::Record(header)),
            Ok(None) => {
                events.push(Event::End);
                return events;
            }
            Err(_) => {
                assert!(reader.next().is_err(), "a stream that failed goes on");
                events.push(Event::Refused);
                return events;
            }
        }
        match ways >> (at % 16 * 2) & 3 {
            0 => {}
            1 => {
                let mut part = Vec::new();
                let amount = reader.remaining().min(5);
                match reader.by_ref().take(amount).read_to_end(&mut part) {
                    Ok(_) => events.push(Event::Part(part)),
                    Err(_) => events.push(Event::Refused),
                }
            }
            _ => {
                let announced = reader.remaining();
                let mut payload = Vec::new();
                let read = reader.read_payload(PAYLOAD_MAX, &mut payload);
                assert!(payload.capacity() as u64 <= 4 * PAYLOAD_MAX, "room for what never came");
                assert!(read.is_err() || payload.len() as u64 == announced);
                let refused = read.is_err();
                events.push(if refused { Event::Refused } else { Event::Payload(payload) });
            }
        }
    }
    events
}
