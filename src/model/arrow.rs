//! A model as an Arrow table: the columns of the file, one tile per batch, planes in place.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, Float32Array, Int32Array, Int64Array, ListArray, RecordBatch,
    RecordBatchReader, StringArray, StructArray, UInt64Array, new_null_array,
};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::data_type::ByteArray;

use super::{Model, TileRef};
use crate::format::{ActivationRange, Encoding, Rotation, ScaleDtype, Scheme};
use crate::schema::RAW;

/// Reads a model as record batches of one tile each, in file order. The columns and their types are
/// those of the file (docs/format.md), and the footer's metadata becomes the schema's. Planes are
/// not copied: those of an uncompressed file are slices of the map, which stays mapped as long as a
/// batch.
#[derive(Debug)]
pub struct ArrowExport {
    model: Arc<Model>,
    schema: SchemaRef,
    /// Tensor and tile of the next batch.
    next: (usize, usize),
}

impl ArrowExport {
    /// Starts at the first tile.
    pub fn new(model: Arc<Model>) -> Self {
        let metadata: HashMap<_, _> = model.metadata().clone().into_iter().collect();
        let schema = Arc::new(Schema::new_with_metadata(fields(), metadata));
        Self {
            model,
            schema,
            next: (0, 0),
        }
    }
}

impl Iterator for ArrowExport {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Every tensor has a tile.
        let (tensor, tile) = self.next;
        let tiles = &self.model.tensors().get(tensor)?.tiles;
        self.next = match tile + 1 < tiles.len() {
            true => (tensor, tile + 1),
            false => (tensor + 1, 0),
        };
        Some(batch(&self.model, &self.schema, tensor, tile))
    }
}

impl RecordBatchReader for ArrowExport {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

fn fields() -> Vec<Field> {
    use DataType::{Binary, Float32, Int32, Int64, UInt64, Utf8};
    const REQUIRED: bool = false;
    const NULLABLE: bool = true;
    let required = |name: &str, kind| Field::new(name, kind, REQUIRED);
    let nullable = |name: &str, kind| Field::new(name, kind, NULLABLE);
    let list = |element| DataType::List(Arc::new(Field::new("element", element, REQUIRED)));
    let rotation = vec![required("block", Int32), required("seed", UInt64)];
    let activation = vec![
        required("t_begin", Int32),
        required("t_end", Int32),
        required("scale", Float32),
        required("zero_point", Float32),
    ];
    vec![
        required("name", Utf8),
        required("tile", Int32),
        required("row_start", Int64),
        required("row_count", Int64),
        required("shape", list(Int64)),
        required("source_dtype", Utf8),
        required("format", Utf8),
        nullable("scheme", Utf8),
        nullable("group_size", Int32),
        nullable("scale_dtype", Utf8),
        required("codes", Binary),
        nullable("scales", Binary),
        nullable("biases", Binary),
        nullable("input_scale", Binary),
        nullable("rotation", DataType::Struct(rotation.into())),
        nullable("activation", list(DataType::Struct(activation.into()))),
        required("checksum", UInt64),
        nullable("cosine", Float32),
        nullable("sqnr_db", Float32),
        nullable("bits_per_weight", Float32),
    ]
}

fn batch(
    model: &Model,
    schema: &SchemaRef,
    tensor: usize,
    tile: usize,
) -> Result<RecordBatch, ArrowError> {
    let failed = |error| ArrowError::ExternalError(Box::new(error));
    let planes = model.planes(tensor, tile).map_err(failed)?;
    let TileRef { tile, .. } = &model.tensors[tensor].tiles[tile];
    let encoding = tile.encoding;
    let text = |text: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let float = |value: Option<f32>| -> ArrayRef { Arc::new(Float32Array::from(vec![value])) };
    let columns = schema
        .fields()
        .iter()
        .map(|field| -> Result<ArrayRef, ArrowError> {
            Ok(match field.name().as_str() {
                "name" => text(Some(&tile.name)),
                "tile" => Arc::new(Int32Array::from(vec![tile.tile as i32])),
                "row_start" => Arc::new(Int64Array::from(vec![tile.row_start as i64])),
                "row_count" => Arc::new(Int64Array::from(vec![tile.row_count as i64])),
                "shape" => shape(tile.shape.dims(), field)?,
                "source_dtype" => text(Some(tile.source_dtype.name())),
                "format" => text(Some(encoding.map_or(RAW, Encoding::name))),
                "scheme" => text(encoding.and_then(Encoding::scheme).map(Scheme::name)),
                "group_size" => {
                    let size = encoding.and_then(Encoding::group_size);
                    let size = size.map(|size| i32::from(size.get()));
                    Arc::new(Int32Array::from(vec![size]))
                }
                "scale_dtype" => text(
                    encoding
                        .and_then(Encoding::scale_dtype)
                        .map(ScaleDtype::name),
                ),
                "codes" => plane(Some(&planes.codes))?,
                "scales" => plane(planes.scales.as_ref())?,
                "biases" => plane(planes.biases.as_ref())?,
                "checksum" => Arc::new(UInt64Array::from(vec![tile.checksum])),
                "cosine" => float(tile.cosine),
                "sqnr_db" => float(tile.sqnr_db),
                "bits_per_weight" => float(tile.bits_per_weight),
                "input_scale" => plane(tile.input_scale.clone().map(ByteArray::from).as_ref())?,
                "rotation" => rotation(tile.rotation, field)?,
                "activation" => activation(&tile.activation, field)?,
                _ => new_null_array(field.data_type(), 1),
            })
        });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema.clone(), columns)
}

fn shape(dims: &[usize], field: &Field) -> Result<ArrayRef, ArrowError> {
    let DataType::List(element) = field.data_type() else {
        return Err(ArrowError::SchemaError("shape is not a list".into()));
    };
    let dims: Vec<i64> = dims.iter().map(|&dim| dim as i64).collect();
    let offsets = OffsetBuffer::from_lengths([dims.len()]);
    let dims = Arc::new(Int64Array::from(dims));
    Ok(Arc::new(ListArray::try_new(
        element.clone(),
        offsets,
        dims,
        None,
    )?))
}

fn rotation(rotation: Option<Rotation>, field: &Field) -> Result<ArrayRef, ArrowError> {
    let (Some(rotation), DataType::Struct(fields)) = (rotation, field.data_type()) else {
        return Ok(new_null_array(field.data_type(), 1));
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![rotation.block as i32])),
        Arc::new(UInt64Array::from(vec![rotation.seed])),
    ];
    let rotation = StructArray::try_new(fields.clone(), columns, None)?;
    Ok(Arc::new(rotation))
}

fn activation(ranges: &[ActivationRange], field: &Field) -> Result<ArrayRef, ArrowError> {
    let (false, DataType::List(element)) = (ranges.is_empty(), field.data_type()) else {
        return Ok(new_null_array(field.data_type(), 1));
    };
    let DataType::Struct(fields) = element.data_type() else {
        return Err(ArrowError::SchemaError(
            "activation is not a list of structs".into(),
        ));
    };
    let number = |value: fn(&ActivationRange) -> i32| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(ranges.iter().map(value)))
    };
    let float = |value: fn(&ActivationRange) -> f32| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(ranges.iter().map(value)))
    };
    let columns = vec![
        number(|range| range.t_begin),
        number(|range| range.t_end),
        float(|range| range.scale),
        float(|range| range.zero_point),
    ];
    let values = Arc::new(StructArray::try_new(fields.clone(), columns, None)?);
    let offsets = OffsetBuffer::from_lengths([ranges.len()]);
    let ranges = ListArray::try_new(element.clone(), offsets, values, None)?;
    Ok(Arc::new(ranges))
}

/// Makes a column of one binary value, which refers to the plane in place.
fn plane(plane: Option<&ByteArray>) -> Result<ArrayRef, ArrowError> {
    /// Keeps the plane alive.
    struct Owner(ByteArray);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.data()
        }
    }

    let Some(plane) = plane else {
        return Ok(new_null_array(&DataType::Binary, 1));
    };
    let offsets = OffsetBuffer::from_lengths([plane.len()]);
    let values = Buffer::from(Bytes::from_owner(Owner(plane.clone())));
    Ok(Arc::new(BinaryArray::try_new(
        offsets,
        values,
        None::<NullBuffer>,
    )?))
}
