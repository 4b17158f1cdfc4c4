//! The planes of a tile on their way from the kernels to a sink.

use bytes::Bytes;

use super::buffer::PlaneBuffer;

/// The planes of a tile as they were made.
#[derive(Debug)]
pub struct TileBuffers {
    /// Packed codes, or the values of a kept tensor.
    pub codes: PlaneBuffer,
    /// None of a kept tensor.
    pub scales: Option<PlaneBuffer>,
    /// None unless the scheme is affine.
    pub biases: Option<PlaneBuffer>,
}

impl TileBuffers {
    /// The bytes of codes, scales and biases; empty where there are none.
    pub fn bytes(&self) -> [&[u8]; 3] {
        [
            self.codes.bytes(),
            self.scales.as_ref().map_or(&[], PlaneBuffer::bytes),
            self.biases.as_ref().map_or(&[], PlaneBuffer::bytes),
        ]
    }

    /// The bytes of codes, scales and biases, to fill.
    pub fn bytes_mut(&mut self) -> [&mut [u8]; 3] {
        fn bytes(plane: &mut Option<PlaneBuffer>) -> &mut [u8] {
            plane.as_mut().map_or(&mut [], PlaneBuffer::bytes_mut)
        }
        [
            self.codes.bytes_mut(),
            bytes(&mut self.scales),
            bytes(&mut self.biases),
        ]
    }
}

/// A plane as a sink writes it, with what the sink puts before it.
#[derive(Debug)]
pub struct Body {
    /// What is written, perhaps compressed.
    pub bytes: Bytes,
    /// Bytes of the plane alone.
    pub plane_bytes: usize,
    /// Bytes before compression.
    pub uncompressed: usize,
}

/// The planes of a tile as a sink writes them: codes, scales and biases.
#[derive(Debug)]
pub struct PackedTile(pub [Option<Body>; 3]);
