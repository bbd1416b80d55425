//! Ports that stay free between a kill and the restart after it.

use std::fs::File;
use std::net::TcpListener;
use std::ops::Range;

use parking_lot::Mutex;

/// Below the range from which the system gives ports to outgoing connections: one of those would
/// sit on a port exactly while its owner is down.
const FIRST: u16 = 10_000;
/// How many are taken at a time.
const BLOCK: u16 = 100;
const BLOCKS: u16 = 200;

/// Ports of this process. The lock keeps test processes beside it away from them, also while nobody
/// listens.
struct Block {
    ports: Range<u16>,
    _lock: File,
}

impl Block {
    fn take() -> Self {
        let directory = std::env::temp_dir().join("caracal-xtest-ports");
        std::fs::create_dir_all(&directory).expect("a directory for locks");
        // Whoever runs beside it begins elsewhere, so that few files are tried.
        let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).expect("a block");
        for n in 0..BLOCKS {
            let block = (start + n) % BLOCKS;
            let lock = File::create(directory.join(block.to_string()));
            // Somebody else's file is somebody else's block.
            let Ok(lock) = lock else { continue };
            if lock.try_lock().is_ok() {
                let first = FIRST + block * BLOCK;
                return Self {
                    ports: first..first + BLOCK,
                    _lock: lock,
                };
            }
        }
        panic!("no ports are free");
    }
}

/// A port that nobody listens on, and that this process gives out once.
pub fn free() -> u16 {
    static BLOCKS: Mutex<Vec<Block>> = Mutex::new(Vec::new());
    let mut blocks = BLOCKS.lock();
    loop {
        if let Some(block) = blocks.last_mut() {
            let ports = block.ports.by_ref();
            if let Some(port) = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
                return port;
            }
        }
        blocks.push(Block::take());
    }
}
