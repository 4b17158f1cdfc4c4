//! Changes Parquet files so that they stay files: the footer and the page headers are taken
//! apart, a few values in them or in a page are changed, and all is put together again, with
//! the places of the pages and, now and then, sizes and checksums as they are now.

use arrowquant::model::Model;
use arrowquant::schema;

use crate::Random;
use crate::thrift::Node;

/// Fields of a column chunk's metadata.
const CODEC: i16 = 4;
const PACKED: i16 = 7;
const DATA: i16 = 9;
const DICTIONARY: i16 = 11;

struct Page {
    header: Node,
    body: Vec<u8>,
}

/// A file taken apart.
struct Parts {
    footer: Node,
    /// Pages of each column chunk, by row group and column.
    chunks: Vec<Vec<Vec<Page>>>,
}

impl Parts {
    fn read(file: &[u8]) -> Option<Self> {
        let end = file.len().checked_sub(8)?;
        let length = u32::from_le_bytes(file[end..end + 4].try_into().ok()?);
        let start = end.checked_sub(length as usize)?;
        let (mut footer, _) = Node::read(&file[start..end])?;
        let mut chunks = Vec::new();
        for group in footer.field(4)?.elements() {
            let columns = group.field(1)?.elements();
            chunks.push(
                columns
                    .iter_mut()
                    .map(|c| pages(file, c))
                    .collect::<Option<_>>()?,
            );
        }
        Some(Self { footer, chunks })
    }

    fn write(mut self) -> Vec<u8> {
        let mut out = b"PAR1".to_vec();
        let mut groups = match self.footer.field(4) {
            Some(Node::List(_, groups)) => std::mem::take(groups),
            _ => Vec::new(),
        };
        for (group, chunks) in groups.iter_mut().zip(&self.chunks) {
            let Some(columns) = group.field(1) else {
                continue;
            };
            for (column, pages) in columns.elements().iter_mut().zip(chunks) {
                let Some(meta) = column.field(3) else {
                    continue;
                };
                let start = out.len();
                let mut data = start;
                for (i, page) in pages.iter().enumerate() {
                    let dictionary = page.header.clone().field(1).and_then(|kind| kind.int());
                    if i == 1 && meta.field(DICTIONARY).is_some() && dictionary != Some(2) {
                        data = out.len();
                    }
                    page.header.write(&mut out);
                    out.extend(&page.body);
                }
                let size = (out.len() - start) as i64;
                for (field, value) in [
                    (DICTIONARY, start as i64),
                    (DATA, data as i64),
                    (PACKED, size),
                ] {
                    if let Some(node) = meta.field(field) {
                        node.set_int(value);
                    }
                }
            }
        }
        let rows = groups
            .iter_mut()
            .filter_map(|group| group.field(3)?.int())
            .fold(0, i64::wrapping_add);
        if let Some(sum) = self.footer.field(3) {
            sum.set_int(rows);
        }
        if let Some(Node::List(_, list)) = self.footer.field(4) {
            *list = groups;
        }
        let start = out.len();
        self.footer.write(&mut out);
        let length = (out.len() - start) as u32;
        out.extend(length.to_le_bytes());
        out.extend(b"PAR1");
        out
    }

    fn page(&mut self, random: &mut Random) -> Option<(i64, &mut Page)> {
        let group = random.below(self.chunks.len().max(1));
        let chunks = self.chunks.get_mut(group)?;
        let column = random.below(chunks.len().max(1));
        let codec = self
            .footer
            .field(4)?
            .elements()
            .get_mut(group)?
            .field(1)?
            .elements();
        let codec = codec.get_mut(column)?.field(3)?.field(CODEC)?.int()?;
        let pages = chunks.get_mut(column)?;
        let page = random.below(pages.len().max(1));
        Some((codec, pages.get_mut(page)?))
    }
}

/// The pages of a column chunk.
fn pages(file: &[u8], column: &mut Node) -> Option<Vec<Page>> {
    let meta = column.field(3)?;
    let start = match meta.field(DICTIONARY) {
        Some(start) => start.int()?,
        None => meta.field(DATA)?.int()?,
    };
    let size = usize::try_from(meta.field(PACKED)?.int()?).ok()?;
    let mut rest = file.get(usize::try_from(start).ok()?..)?.get(..size)?;
    let mut pages = Vec::new();
    while !rest.is_empty() {
        let (mut header, length) = Node::read(rest)?;
        let body = usize::try_from(header.field(3)?.int()?).ok()?;
        let end = length.checked_add(body)?;
        let page = Page {
            body: rest.get(length..end)?.to_vec(),
            header,
        };
        pages.push(page);
        rest = &rest[end..];
    }
    Some(pages)
}

/// The file changed, when it is one.
pub fn mutate(
    file: &[u8],
    random: &mut Random,
    bytes: &mut dyn FnMut(&mut Vec<u8>),
) -> Option<Vec<u8>> {
    let mut parts = Parts::read(file)?;
    for _ in 0..1 + random.below(3) {
        change(&mut parts, random, bytes);
    }
    let mut file = parts.write();
    if random.below(3) == 0 {
        fix_checksums(&mut file);
    }
    // What is said of places and sizes in the footer was just made right: change that, too.
    if random.below(4) == 0 {
        break_footer(&mut file, random);
    }
    Some(file)
}

fn change(
    parts: &mut Parts,
    random: &mut Random,
    bytes: &mut dyn FnMut(&mut Vec<u8>),
) -> Option<()> {
    match random.below(8) {
        0 => change_tree(&mut parts.footer, random, bytes),
        1 => change_tree(&mut parts.page(random)?.1.header, random, bytes),
        2 => {
            // A row group or column once more, or gone.
            let group = random.below(parts.chunks.len().max(1));
            let Some(Node::List(_, groups)) = parts.footer.field(4) else {
                return None;
            };
            if group >= groups.len() {
                return None;
            }
            if random.below(2) == 0 {
                groups.remove(group);
                parts.chunks.remove(group);
            } else {
                groups.push(groups[group].clone());
                let copy = parts.chunks[group].iter().map(|pages| {
                    let copy = |p: &Page| Page {
                        header: p.header.clone(),
                        body: p.body.clone(),
                    };
                    pages.iter().map(copy).collect()
                });
                let copy = copy.collect();
                parts.chunks.push(copy);
            }
        }
        3 => {
            // Another codec, with pages packed by it.
            let group = random.below(parts.chunks.len().max(1));
            let column = random.below(24);
            let groups = parts.footer.field(4)?.elements();
            let meta = groups
                .get_mut(group)?
                .field(1)?
                .elements()
                .get_mut(column)?
                .field(3)?;
            let codec = meta.field(CODEC)?;
            if codec.int() != Some(0) {
                return None;
            }
            codec.set_int(6);
            for page in parts.chunks.get_mut(group)?.get_mut(column)? {
                pack(page);
            }
        }
        _ => {
            let fix = random.below(4) > 0;
            let (codec, page) = parts.page(random)?;
            let mut body = match codec {
                6 => zstd::bulk::decompress(&page.body, 1 << 20).ok()?,
                _ => page.body.clone(),
            };
            match random.below(4) {
                // The same again and again.
                0 if body.len() < 1 << 16 => body = body.repeat(1 + random.below(8)),
                1 => body.resize(body.len() + random.below(64), 0),
                2 if body.len() >= 8 => {
                    let at = random.below(body.len() - 7);
                    let number = i64::from_le_bytes(body[at..at + 8].try_into().ok()?);
                    body[at..at + 8].copy_from_slice(&random.number(number).to_le_bytes());
                }
                _ => bytes(&mut body),
            }
            let unpacked = body.len() as i64;
            page.body = body;
            if codec == 6 {
                pack(page);
            }
            if fix {
                page.header.field(2)?.set_int(unpacked);
                page.header.field(3)?.set_int(page.body.len() as i64);
            }
        }
    }
    Some(())
}

fn pack(page: &mut Page) {
    if let Ok(packed) = zstd::bulk::compress(&page.body, 1) {
        page.body = packed;
        if let Some(size) = page.header.field(3) {
            size.set_int(page.body.len() as i64);
        }
    }
}

/// Changes one node of a tree.
fn change_tree(tree: &mut Node, random: &mut Random, bytes: &mut dyn FnMut(&mut Vec<u8>)) {
    let mut count = 0;
    tree.all(&mut |_| count += 1);
    let chosen = random.below(count);
    let mut at = 0;
    tree.all(&mut |node| {
        at += 1;
        if at != chosen + 1 {
            return;
        }
        match node {
            Node::Bool(value) => *value = !*value,
            Node::Byte(value) => *value = random.next() as u8,
            Node::Int(5, value) => *value = i64::from(random.number(*value) as i32),
            Node::Int(_, value) => *value = random.number(*value),
            Node::Double(value) => *value = random.next().to_le_bytes(),
            Node::Bytes(value) => bytes(value),
            Node::List(code, nodes) => match random.below(4) {
                0 => *code = random.below(14) as u8,
                1 if !nodes.is_empty() => drop(nodes.remove(random.below(nodes.len()))),
                2 if !nodes.is_empty() && nodes.len() < 100 => {
                    let node = nodes[random.below(nodes.len())].clone();
                    let times = 1 << random.below(8);
                    nodes.extend(std::iter::repeat_n(node, times));
                }
                _ => nodes.clear(),
            },
            Node::Struct(fields) => match random.below(3) {
                0 if !fields.is_empty() => drop(fields.remove(random.below(fields.len()))),
                1 if !fields.is_empty() => {
                    let field = random.below(fields.len());
                    fields[field].0 = random.below(20) as i16;
                }
                _ => fields.push((random.below(20) as i16, Node::Int(6, random.next() as i64))),
            },
        }
    });
}

/// Changes a node of the footer of a whole file.
fn break_footer(file: &mut Vec<u8>, random: &mut Random) -> Option<()> {
    let end = file.len() - 8;
    let length = u32::from_le_bytes(file[end..end + 4].try_into().ok()?);
    let start = end - length as usize;
    let (mut footer, _) = Node::read(&file[start..end])?;
    change_tree(&mut footer, random, &mut |_| {});
    file.truncate(start);
    footer.write(file);
    let length = (file.len() - start) as u32;
    file.extend(length.to_le_bytes());
    file.extend(b"PAR1");
    Some(())
}

/// Replaces the checksums that no longer hold, where they stand as they are.
fn fix_checksums(file: &mut [u8]) {
    let Ok(model) = Model::from_bytes(file.to_vec()) else {
        return;
    };
    for (i, tensor) in model.tensors().iter().enumerate() {
        for (j, tile) in tensor.tiles.iter().enumerate() {
            let Ok(planes) = model.planes(i, j) else {
                continue;
            };
            let tile = &tile.tile;
            let right = schema::checksum(tile, planes.codes(), planes.scales(), planes.biases());
            let stored = tile.checksum.to_le_bytes();
            if let Some(at) = file.windows(8).position(|window| window == stored) {
                file[at..at + 8].copy_from_slice(&right.to_le_bytes());
            }
        }
    }
}
