//! Where each target tensor goes: files, shards, offsets. A function of the plan and the source's
//! element types alone.

use crate::error::Result;
use crate::number::width;
use crate::plan::{Plan, Target, files};
use lightc_checkpoint::Streamed;
use lightc_checkpoint::format::{shard_name, whole_name};
use safetensors::Dtype;

/// One file to write.
#[derive(Debug, Clone)]
pub(crate) struct Shard {
    /// Its name in the folder.
    pub(crate) name: String,
    /// Header of the file: length and JSON.
    pub(crate) header: Vec<u8>,
    /// Its tensors in the order of their bytes.
    pub(crate) tensors: Vec<Placed>,
}

/// A tensor in a file.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    /// Index in the plan's targets.
    pub(crate) target: usize,
    pub(crate) dtype: Dtype,
    pub(crate) n_bytes: u64,
}

impl Shard {
    /// Length of the file.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(|tensor| tensor.n_bytes).sum::<u64>()
    }
}

/// The widest float type that the source has in a file: what the target is stored in.
pub(crate) fn dtype_of(source: &Streamed, file: &str) -> Dtype {
    let entries = source.manifest().files.iter().filter(|entry| whole_name(&entry.name) == file);
    let tensors = entries.flat_map(|entry| &entry.tensors);
    // Scales of quantized tensors are f32 whatever the rest is.
    let tensors = tensors.filter(|tensor| !tensor.name.ends_with(".scale"));
    let dtypes = tensors.map(|tensor| tensor.dtype);
    let floats =
        dtypes.filter(|dtype| matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::BF16 | Dtype::F16));
    floats.max_by_key(|dtype| dtype.bitsize()).unwrap_or(Dtype::F32)
}

/// The shards of all files of the target.
pub(crate) fn shards(plan: &Plan, source: &Streamed, shard_bytes: u64) -> Result<Vec<Shard>> {
    let mut all = Vec::new();
    for file in [files::PARAMS, files::MOMENTS_M, files::MOMENTS_V, files::STATES] {
        let dtype = dtype_of(source, file);
        let mut lists: Vec<Vec<Placed>> = vec![Vec::new()];
        let mut n_bytes = 0;
        let targets = plan.targets.iter().enumerate().filter(|(_, t)| t.file == file);
        let mut targets: Vec<Placed> = targets.map(|(i, t)| placed(i, t, dtype)).collect();
        // Wide elements first, so that each tensor begins at a multiple of its element.
        targets.sort_by_key(|placed| std::cmp::Reverse(width(placed.dtype)));
        for placed in targets {
            if n_bytes > 0 && n_bytes + placed.n_bytes > shard_bytes {
                lists.push(Vec::new());
                n_bytes = 0;
            }
            n_bytes += placed.n_bytes;
            if let Some(list) = lists.last_mut() {
                list.push(placed);
            }
        }
        let n_shards = lists.len();
        for (index, tensors) in lists.into_iter().enumerate() {
            let header = header(plan, &tensors);
            all.push(Shard { name: shard_name(file, index + 1, n_shards), header, tensors });
        }
    }
    Ok(all)
}

fn placed(target: usize, tensor: &Target, dtype: Dtype) -> Placed {
    let dtype = tensor.dtype.unwrap_or(dtype);
    let n_bytes = tensor.node.n_elements() as u64 * width(dtype) as u64;
    Placed { target, dtype, n_bytes }
}

/// A safetensors header: the length of what follows, then JSON, padded to a multiple of 8.
fn header(plan: &Plan, tensors: &[Placed]) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    let mut begin = 0;
    for placed in tensors {
        let end = begin + placed.n_bytes;
        if let Some(target) = plan.targets.get(placed.target) {
            entries.insert(
                target.name.clone(),
                serde_json::json!({
                    "dtype": placed.dtype,
                    "shape": target.node.shape,
                    "data_offsets": [begin, end],
                }),
            );
        }
        begin = end;
    }
    let mut text = serde_json::Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    header
}
