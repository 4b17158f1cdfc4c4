//! Tiles and pieces: how many rows are stored, and how many are worked on, together.

/// Largest codes plane of a tile in an uncompressed file (one row may pass it).
pub const TILE_BYTES: usize = 128 << 20;

/// Largest codes plane of a tile in a compressed file: small, so that a reader need not unpack 128 MiB for one row.
pub const TILE_BYTES_COMPRESSED: usize = 16 << 20;

/// The most whole rows, of `row_bytes` packed bytes each, whose codes fit a tile; at least one.
pub fn rows_per_tile(rows: usize, row_bytes: usize, tile_bytes: usize) -> usize {
    match tile_bytes.checked_div(row_bytes) {
        Some(fit) => fit.clamp(1, rows.max(1)),
        None => rows.max(1),
    }
}

/// Rows are quantized, measured and decoded in pieces of about this many weights, small enough
/// to stay in cache. Error sums are added row by row inside a piece and piece by piece in a
/// tile, so the number is part of what makes reported figures the same everywhere.
pub const PIECE_WEIGHTS: usize = 1 << 18;

/// Whole rows of `cols` weights in a piece; at least one.
pub fn rows_per_piece(cols: usize) -> usize {
    (PIECE_WEIGHTS / cols.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_whole_rows() {
        assert_eq!(rows_per_tile(100, 30, 100), 3);
        assert_eq!(rows_per_tile(2, 30, 100), 2);
        assert_eq!(rows_per_tile(100, 300, 100), 1);
        assert_eq!(rows_per_tile(100, 0, 100), 100);
        assert_eq!(rows_per_tile(0, 30, 100), 1);
    }
}
