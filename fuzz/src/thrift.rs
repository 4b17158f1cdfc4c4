//! Thrift's compact encoding as a tree that can be changed and written again.

/// A value with its type.
#[derive(Debug, Clone)]
pub enum Node {
    Bool(bool),
    /// A byte as it is.
    Byte(u8),
    /// Of type 4, 5 or 6.
    Int(u8, i64),
    Double([u8; 8]),
    Bytes(Vec<u8>),
    List(u8, Vec<Node>),
    Struct(Vec<(i16, Node)>),
}

impl Node {
    fn code(&self) -> u8 {
        match self {
            Self::Bool(true) => 1,
            Self::Bool(false) => 2,
            Self::Byte(_) => 3,
            Self::Int(code, _) => *code,
            Self::Double(_) => 7,
            Self::Bytes(_) => 8,
            Self::List(..) => 9,
            Self::Struct(_) => 12,
        }
    }

    /// The struct at the start of `bytes`, and its length.
    pub fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut rest = bytes;
        let node = read(&mut rest, 12, 0)?;
        Some((node, bytes.len() - rest.len()))
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bool(_) => {}
            Self::Byte(byte) => out.push(*byte),
            Self::Int(_, value) => varint(((value << 1) ^ (value >> 63)) as u64, out),
            Self::Double(bytes) => out.extend(bytes),
            Self::Bytes(bytes) => {
                varint(bytes.len() as u64, out);
                out.extend(bytes);
            }
            Self::List(code, nodes) => {
                if nodes.len() < 15 {
                    out.push((nodes.len() as u8) << 4 | code);
                } else {
                    out.push(0xF0 | code);
                    varint(nodes.len() as u64, out);
                }
                nodes.iter().for_each(|node| node.write(out));
            }
            Self::Struct(fields) => {
                let mut last = 0i16;
                for (id, node) in fields {
                    match id.checked_sub(last) {
                        Some(delta @ 1..=15) => out.push((delta as u8) << 4 | node.code()),
                        _ => {
                            out.push(node.code());
                            let id = i64::from(*id);
                            varint(((id << 1) ^ (id >> 63)) as u64, out);
                        }
                    }
                    node.write(out);
                    last = *id;
                }
                out.push(0);
            }
        }
    }

    /// A field of a struct.
    pub fn field(&mut self, id: i16) -> Option<&mut Self> {
        match self {
            Self::Struct(fields) => fields
                .iter_mut()
                .find(|field| field.0 == id)
                .map(|f| &mut f.1),
            _ => None,
        }
    }

    /// The elements of a list.
    pub fn elements(&mut self) -> &mut [Self] {
        match self {
            Self::List(_, nodes) => nodes,
            _ => &mut [],
        }
    }

    pub fn int(&self) -> Option<i64> {
        match self {
            Self::Int(_, value) => Some(*value),
            _ => None,
        }
    }

    pub fn set_int(&mut self, to: i64) {
        if let Self::Int(_, value) = self {
            *value = to;
        }
    }

    /// Every node below this one, and itself.
    pub fn all<'a>(&'a mut self, visit: &mut dyn FnMut(&mut Self)) {
        visit(self);
        match self {
            Self::List(_, nodes) => nodes.iter_mut().for_each(|node| node.all(visit)),
            Self::Struct(fields) => fields.iter_mut().for_each(|field| field.1.all(visit)),
            _ => {}
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn read_int(rest: &mut &[u8]) -> Option<i64> {
    let coded = read_varint(rest)?;
    Some((coded >> 1) as i64 ^ -((coded & 1) as i64))
}

fn read(rest: &mut &[u8], code: u8, depth: usize) -> Option<Node> {
    if depth > 20 {
        return None;
    }
    Some(match code {
        1 | 2 => Node::Bool(code == 1),
        3 => Node::Byte(take(rest, 1)?[0]),
        4..=6 => Node::Int(code, read_int(rest)?),
        7 => Node::Double(take(rest, 8)?.try_into().ok()?),
        8 => {
            let len = read_varint(rest)?;
            Node::Bytes(take(rest, usize::try_from(len).ok()?)?.to_vec())
        }
        9 => {
            let head = take(rest, 1)?[0];
            let len = match head >> 4 {
                15 => read_varint(rest)?,
                len => u64::from(len),
            };
            if len > rest.len() as u64 || matches!(head & 15, 1 | 2) {
                return None;
            }
            let nodes = (0..len).map(|_| read(rest, head & 15, depth + 1));
            Node::List(head & 15, nodes.collect::<Option<_>>()?)
        }
        12 => {
            let mut fields = Vec::new();
            let mut last = 0i16;
            loop {
                let head = take(rest, 1)?[0];
                if head & 15 == 0 {
                    break;
                }
                last = match head >> 4 {
                    0 => i16::try_from(read_int(rest)?).ok()?,
                    delta => last.checked_add(i16::from(delta))?,
                };
                fields.push((last, read(rest, head & 15, depth + 1)?));
            }
            Node::Struct(fields)
        }
        _ => return None,
    })
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value > 0x7F {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
