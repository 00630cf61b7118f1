// source: tiny.llm, written by lightc 0.1.0
// digest, imports included: da2656c5ab8b9960ddbac1c05b3813d3a322c6518dec85a36282926a5e35f47a
//
// | import "../lightning/lightning.llm"
// |
// | /// The dense seed with its structure kept and its sizes cut, so that two CPU cores train it in
// | /// minutes: 8 layers in the same motif, 4 streams, memory and the multi-token head.
// | ///
// | /// Selection budgets are scaled to sequences of 128 positions.
// | stage tiny_2b extends lightning_2b {
// |     d              = 64
// |     vocab          = 2048
// |     f              = 96
// |     byte_positions = 16
// |
// |     delta_heads     = 2
// |     delta_channels  = 32
// |     sparse_heads    = 2
// |     sparse_channels = 32
// |     index_head      = 2
// |     index_channel   = 16
// |     budget_base     = 32
// |     budget_min      = 8
// |     budget_max      = 64
// | }
// |
// | /// The seed with four experts and four null slots beside each feed-forward.
// | stage tiny_5b extends lightning_5b {
// |     d              = 64
// |     vocab          = 2048
// |     f              = 96
// |     byte_positions = 16
// |
// |     delta_heads     = 2
// |     delta_channels  = 32
// |     sparse_heads    = 2
// |     sparse_channels = 32
// |     index_head      = 2
// |     index_channel   = 16
// |     budget_base     = 32
// |     budget_min      = 8
// |     budget_max      = 64
// |
// |     e            = 4
// |     nulls        = 4
// |     expert_width = 32
// | }
// |
// | /// Twelve layers in place of eight.
// | stage tiny_9b extends lightning_9b {
// |     d              = 64
// |     vocab          = 2048
// |     f              = 96
// |     byte_positions = 16
// |     motif          = [delta, delta, delta, sparse] * 3
// |
// |     delta_heads     = 2
// |     delta_channels  = 32
// |     sparse_heads    = 2
// |     sparse_channels = 32
// |     index_head      = 2
// |     index_channel   = 16
// |     budget_base     = 32
// |     budget_min      = 8
// |     budget_max      = 64
// |
// |     e            = 4
// |     nulls        = 4
// |     expert_width = 32
// | }
// |
// | /// Twelve quantized experts, three clones of each of four, with adapters of rank 4.
// | stage tiny_120b extends lightning_120b {
// |     d              = 64
// |     vocab          = 2048
// |     f              = 96
// |     byte_positions = 16
// |     motif          = [delta, delta, delta, sparse] * 3
// |
// |     delta_heads     = 2
// |     delta_channels  = 32
// |     sparse_heads    = 2
// |     sparse_channels = 32
// |     index_head      = 2
// |     index_channel   = 16
// |     budget_base     = 32
// |     budget_min      = 8
// |     budget_max      = 64
// |
// |     e            = 12
// |     mtp_e        = 4
// |     top_k        = 4
// |     rank         = 4
// |     expert_width = 32
// |     router       = SigmoidRouter(low: 0.02, high: 0.25)
// |     mtp_router   = SigmoidRouter(e: mtp_e, low: 0.1, high: 0.5)
// | }
// |
// | /// The seed joined as the later stages are.
// | stage tiny_2b_midpoint extends tiny_2b {
// |     integrator = midpoint(h: 1 / 4, a: 1 / 2)
// | }
// |
// | /// Twelve layers of which the last four start silent.
// | stage tiny_9b_exact extends tiny_9b {
// |     integrator     = midpoint(h: 1 / 4, a: [1 / 2] * 8 + [1] * 4, gates: [none] * 8 + [0] * 4)
// |     mtp_integrator = midpoint(h: 1 / 4, a: 1 / 2)
// | }
// |
// | /// Twelve experts that compute what the four of the source compute: groups of three clones.
// | stage tiny_120b_exact extends tiny_9b_exact {
// |     g       = 4
// |     clones  = 3
// |     group_k = 2
// |     clone_k = 2
// |     e       = g * clones
// |     top_k   = group_k * clone_k
// |     mtp_e   = 4
// |     mtp_k   = 2
// |
// |     router     = GroupedRouter()
// |     mtp_router = SoftmaxRouter(e: mtp_e, top_k: mtp_k)
// |     mtp_routed = Experts(e: mtp_e, f: expert_width, top_k: mtp_k)
// |     mtp_ffn    = MixtureOfExperts(shared: SwiGlu(), routed: mtp_routed, router: mtp_router)
// | }
// |
// | /// The published first step. Every expert starts as a random half of the units of its layer's
// | /// feed-forward, which stays complete beside them.
// | grow tiny_dense_to_moe: tiny_2b -> tiny_5b {
// |     changes "routed experts are added to a complete feed-forward, and layers are joined otherwise"
// |     seed 42
// |     moments reset "the published step starts Adam anew"
// |     setting layers.integrator "plain residuals become a midpoint rule with the same weights"
// |     setting mtp.layers.integrator "as the layers"
// |
// |     rest                                  = src
// |     layers[l].feed.body.shared.**         = src.layers[l].feed.body.** for l in 0 .. 8
// |     layers[l].feed.body.routed.gate       = subset(
// |         src.layers[l].feed.body.gate, over f, each e, key: "neurons.{l}") for l in 0 .. 8
// |     layers[l].feed.body.routed.up         = subset(
// |         src.layers[l].feed.body.up, over f, each e, key: "neurons.{l}") for l in 0 .. 8
// |     layers[l].feed.body.routed.down       = subset(
// |         src.layers[l].feed.body.down, over f, each e, key: "neurons.{l}") for l in 0 .. 8
// |     layers[l].feed.body.router.weight     = normal(0.02) for l in 0 .. 8
// |     layers[l].feed.body.router.bias       = zeros for l in 0 .. 8
// |     layers[l].feed.body.router.null_logit = zeros for l in 0 .. 8
// |
// |     mtp.layers[1].body.shared.**         = src.mtp.layers[1].body.**
// |     mtp.layers[1].body.routed.gate       = subset(
// |         src.mtp.layers[1].body.gate, over f, each e, key: "neurons.mtp")
// |     mtp.layers[1].body.routed.up         = subset(
// |         src.mtp.layers[1].body.up, over f, each e, key: "neurons.mtp")
// |     mtp.layers[1].body.routed.down       = subset(
// |         src.mtp.layers[1].body.down, over f, each e, key: "neurons.mtp")
// |     mtp.layers[1].body.router.weight     = normal(0.02)
// |     mtp.layers[1].body.router.bias       = zeros
// |     mtp.layers[1].body.router.null_logit = zeros
// | }
// |
// | /// The first step without a change: routed experts start silent.
// | grow tiny_dense_to_moe_exact: tiny_2b_midpoint -> tiny_5b {
// |     preserves exactly
// |     seed 42
// |     moments follow
// |
// |     rest                                  = src
// |     layers[l].feed.body.shared.**         = src.layers[l].feed.body.** for l in 0 .. 8
// |     layers[l].feed.body.routed.gate       = subset(
// |         src.layers[l].feed.body.gate, over f, each e, key: "neurons.{l}") for l in 0 .. 8
// |     layers[l].feed.body.routed.up         = subset(
// |         src.layers[l].feed.body.up, over f, each e, key: "neurons.{l}") for l in 0 .. 8
// |     layers[l].feed.body.routed.down       = zeros for l in 0 .. 8
// |     layers[l].feed.body.router.weight     = normal(0.02) for l in 0 .. 8
// |     layers[l].feed.body.router.bias       = zeros for l in 0 .. 8
// |     layers[l].feed.body.router.null_logit = zeros for l in 0 .. 8
// |
// |     mtp.layers[1].body.shared.**         = src.mtp.layers[1].body.**
// |     mtp.layers[1].body.routed.gate       = subset(
// |         src.mtp.layers[1].body.gate, over f, each e, key: "neurons.mtp")
// |     mtp.layers[1].body.routed.up         = subset(
// |         src.mtp.layers[1].body.up, over f, each e, key: "neurons.mtp")
// |     mtp.layers[1].body.routed.down       = zeros
// |     mtp.layers[1].body.router.weight     = normal(0.02)
// |     mtp.layers[1].body.router.bias       = zeros
// |     mtp.layers[1].body.router.null_logit = zeros
// | }
// |
// | /// The published second step: the layers of the source run again, in its order.
// | grow tiny_depth: tiny_5b -> tiny_9b {
// |     changes "layers 4 to 7 run twice"
// |     moments reset "the published step starts Adam anew"
// |     rest         = src
// |     layers[i].** = src.layers[j].** for i, j in zip(0 .. 12, [0 .. 8, 4 .. 8])
// | }
// |
// | /// The second step without a change: four layers are added that start silent, and hold copies of
// | /// the layers that the published step runs again.
// | grow tiny_depth_exact: tiny_5b -> tiny_9b_exact {
// |     preserves exactly
// |     moments follow
// |     setting layers.integrator "the new layers swap two states, in pairs"
// |     rest              = src
// |     layers[i].mix.**  = src.layers[j].mix.** for i, j in zip(0 .. 12, [0 .. 8, 4 .. 8])
// |     layers[i].feed.** = src.layers[j].feed.** for i, j in zip(0 .. 12, [0 .. 8, 4 .. 8])
// |     layers[i].gate    = zeros for i in 8 .. 12
// | }
// |
// | /// The published third step: three copies of each expert, of which half of the units are drawn anew,
// | /// under another router; the experts become 8-bit codes with adapters.
// | grow tiny_clones: tiny_9b -> tiny_120b {
// |     changes "the router is another one, half of the units are drawn anew, weights are quantized"
// |     seed 1337
// |     moments reset "the published step starts Adam anew"
// |     setting **.routed.*.storage "experts become 8-bit codes, and what is trained of them adapters"
// |
// |     rest                            = src
// |     layers[l].feed.body.routed.gate = rotate(
// |         redraw(
// |             tile(src.layers[l].feed.body.routed.gate, over e), keep: expert_width / 2, over f,
// |             each e, key: "units.{l}"), over d, seed: 42) for l in 0 .. 12
// |     layers[l].feed.body.routed.up   = rotate(
// |         redraw(
// |             tile(src.layers[l].feed.body.routed.up, over e), keep: expert_width / 2, over f, each e,
// |             key: "units.{l}"), over d, seed: 42) for l in 0 .. 12
// |     layers[l].feed.body.routed.down = rotate(
// |         redraw(
// |             tile(src.layers[l].feed.body.routed.down, over e), keep: expert_width / 2, over f,
// |             each e, key: "units.{l}"), over f, seed: 242) for l in 0 .. 12
// |
// |     layers[l].feed.body.routed.gate_left  = normal(0.0001) for l in 0 .. 12
// |     layers[l].feed.body.routed.gate_right = normal(1 / sqrt(rank)) for l in 0 .. 12
// |     layers[l].feed.body.routed.up_left    = normal(0.0001) for l in 0 .. 12
// |     layers[l].feed.body.routed.up_right   = normal(1 / sqrt(rank)) for l in 0 .. 12
// |     layers[l].feed.body.routed.down_left  = normal(0.0001) for l in 0 .. 12
// |     layers[l].feed.body.routed.down_right = normal(1 / sqrt(rank)) for l in 0 .. 12
// |
// |     layers[l].feed.body.router.weight     = noise(
// |         tile(src.layers[l].feed.body.router.weight, over e), factor: 0.05) for l in 0 .. 12
// |     layers[l].feed.body.router.null_logit = zeros for l in 0 .. 12
// |     layers[l].feed.body.router.bias       = zeros for l in 0 .. 12
// |     layers[l].feed.body.router.load       = 1 / e for l in 0 .. 12
// |     drop src.layers[l].feed.body.router.bias "the learned bias of the softmax router" for l in 0 .. 12
// |     drop src.layers[l].feed.body.router.null_logit "null slots are lost" for l in 0 .. 12
// |
// |     mtp.layers[1].body.routed.gate       = rotate(
// |         src.mtp.layers[1].body.routed.gate, over d, seed: 42)
// |     mtp.layers[1].body.routed.up         = rotate(
// |         src.mtp.layers[1].body.routed.up, over d, seed: 42)
// |     mtp.layers[1].body.routed.down       = rotate(
// |         src.mtp.layers[1].body.routed.down, over f, seed: 242)
// |     mtp.layers[1].body.routed.gate_left  = normal(0.0001)
// |     mtp.layers[1].body.routed.gate_right = normal(1 / sqrt(rank))
// |     mtp.layers[1].body.routed.up_left    = normal(0.0001)
// |     mtp.layers[1].body.routed.up_right   = normal(1 / sqrt(rank))
// |     mtp.layers[1].body.routed.down_left  = normal(0.0001)
// |     mtp.layers[1].body.routed.down_right = normal(1 / sqrt(rank))
// |     mtp.layers[1].body.router.null_logit = zeros
// |     mtp.layers[1].body.router.bias       = zeros
// |     mtp.layers[1].body.router.load       = 1 / mtp_e
// |     drop src.mtp.layers[1].body.router.bias "the learned bias of the softmax router"
// |     drop src.mtp.layers[1].body.router.null_logit "null slots are lost"
// | }
// |
// | /// The third step without a change: three equal copies of each expert, and a router that picks groups
// | /// of copies as the source picks experts. Clones become different because they see different
// | /// positions.
// | grow tiny_clones_exact: tiny_9b_exact -> tiny_120b_exact {
// |     preserves exactly
// |     seed 1337
// |     moments follow
// |     setting layers.feed.body.routed.top_k "two experts as two groups of two equal clones"
// |
// |     rest                                = src
// |     layers[l].feed.body.routed.gate     = tile(
// |         src.layers[l].feed.body.routed.gate, over e) for l in 0 .. 12
// |     layers[l].feed.body.routed.up       = tile(
// |         src.layers[l].feed.body.routed.up, over e) for l in 0 .. 12
// |     layers[l].feed.body.routed.down     = tile(
// |         src.layers[l].feed.body.routed.down, over e) for l in 0 .. 12
// |     layers[l].feed.body.router.group.** = src.layers[l].feed.body.router.** for l in 0 .. 12
// |     layers[l].feed.body.router.clone    = normal(0.02) for l in 0 .. 12
// | }

// Stage `tiny_2b`, generated by lightc 0.1.0; changes are lost.
// source: tiny.llm
// digest: da2656c5ab8b9960ddbac1c05b3813d3a322c6518dec85a36282926a5e35f47a

use lightc_runtime::bind::{Empty, FlatSource, FlatStates, ParamGrads};
use lightc_runtime::{
    Batch, CarrySpec, Init, Inputs, Outputs, ParamSpec, Precision, Result, Stage,
    StateSpec, StepReport, Storage, TableSpec, Tensor, TrainState,
};
use std::any::Any;
/// Stage `tiny_2b`: 379 parameter tensors.
pub struct Tiny2b;
/// Parameters, in canonical order.
pub static PARAMS: &[ParamSpec] = &[
    ParamSpec {
        path: "embed.weight",
        shape: &[4096, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.0003125f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "embed_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "memory_in.strength",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(-2.5f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "memory_in.norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "memory_in.norm.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "memory_in.gate",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "memory_in.gate_bias",
        shape: &[],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.query_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.query_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.key_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.key_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.value_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.value_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.write",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.write_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.decay",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.decay_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.a_log",
        shape: &[2],
        precision: Precision::F32,
        init: Init::LogUniform {
            low: 0f64,
            high: 16f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.dt_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Uniform {
            low: -0.01f64,
            high: 0.01f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.skip",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.out_norm.weight",
        shape: &[32],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.mix.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.0.feed.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.query_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.query_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.key_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.key_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.value_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.value_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.write",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.write_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.decay",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.decay_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.a_log",
        shape: &[2],
        precision: Precision::F32,
        init: Init::LogUniform {
            low: 0f64,
            high: 16f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.dt_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Uniform {
            low: -0.01f64,
            high: 0.01f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.skip",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.out_norm.weight",
        shape: &[32],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.mix.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.1.feed.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.query_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.query_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.key_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.key_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.value_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.value_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.write",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.write_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.decay",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.decay_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.a_log",
        shape: &[2],
        precision: Precision::F32,
        init: Init::LogUniform {
            low: 0f64,
            high: 16f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.dt_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Uniform {
            low: -0.01f64,
            high: 0.01f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.skip",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.out_norm.weight",
        shape: &[32],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.mix.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.2.feed.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.body.value_gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.body.output_gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.mix.body.index_query",
        shape: &[2, 16, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "layers.3.mix.body.index_key",
        shape: &[16, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "layers.3.mix.body.index_weight",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "layers.3.mix.body.index_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "layers.3.feed.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.3.feed.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.query_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.query_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.key_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.key_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.value_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.value_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.write",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.write_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.decay",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.decay_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.a_log",
        shape: &[2],
        precision: Precision::F32,
        init: Init::LogUniform {
            low: 0f64,
            high: 16f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.dt_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Uniform {
            low: -0.01f64,
            high: 0.01f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.skip",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.out_norm.weight",
        shape: &[32],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.mix.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.4.feed.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.query_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.query_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.key_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.key_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.value_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.value_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.write",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.write_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.decay",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.decay_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.a_log",
        shape: &[2],
        precision: Precision::F32,
        init: Init::LogUniform {
            low: 0f64,
            high: 16f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.dt_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Uniform {
            low: -0.01f64,
            high: 0.01f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.skip",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.out_norm.weight",
        shape: &[32],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.mix.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.5.feed.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.query_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.query_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.key_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.key_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.value_conv.weight",
        shape: &[64, 4],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.value_conv.bias",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Uniform {
            low: -0.5f64,
            high: 0.5f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.write",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.write_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.decay",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.decay_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.a_log",
        shape: &[2],
        precision: Precision::F32,
        init: Init::LogUniform {
            low: 0f64,
            high: 16f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.dt_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Uniform {
            low: -0.01f64,
            high: 0.01f64,
        },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.skip",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.out_norm.weight",
        shape: &[32],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.mix.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.6.feed.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.body.value_gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.body.output_gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.mix.body.index_query",
        shape: &[2, 16, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "layers.7.mix.body.index_key",
        shape: &[16, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "layers.7.mix.body.index_weight",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "layers.7.mix.body.index_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "layers.7.feed.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "layers.7.feed.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "final_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "lm_head",
        shape: &[2048, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.fuse",
        shape: &[64, 128],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.body.query",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.body.key",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.body.value",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.body.value_gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.body.output_gate",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.body.out",
        shape: &[64, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.0.body.index_query",
        shape: &[2, 16, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "mtp.layers.0.body.index_key",
        shape: &[16, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "mtp.layers.0.body.index_weight",
        shape: &[2, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "mtp.layers.0.body.index_bias",
        shape: &[2],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Frozen("only selected indexes leave the indexer"),
    },
    ParamSpec {
        path: "mtp.layers.1.flat_norm.weight",
        shape: &[256],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.phi_pre",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.phi_post",
        shape: &[4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.phi_residual",
        shape: &[4, 4, 256],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.alpha_pre",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.alpha_post",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.alpha_residual",
        shape: &[],
        precision: Precision::F32,
        init: Init::Constant(0.1f64),
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.bias_pre",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.bias_post",
        shape: &[4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.bias_residual",
        shape: &[4, 4],
        precision: Precision::F32,
        init: Init::Zeros,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.pre_norm.weight",
        shape: &[64],
        precision: Precision::Act,
        init: Init::Ones,
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.body.gate",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.body.up",
        shape: &[96, 64],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
    ParamSpec {
        path: "mtp.layers.1.body.down",
        shape: &[64, 96],
        precision: Precision::Act,
        init: Init::Normal { std: 0.02f64 },
        storage: Storage::Trained,
    },
];
/// States, in canonical order.
pub static STATES: &[StateSpec] = &[
    StateSpec {
        path: "layers.3.mix.body.ema",
        shape: &[],
        start: 1f64,
    },
    StateSpec {
        path: "layers.7.mix.body.ema",
        shape: &[],
        start: 1f64,
    },
    StateSpec {
        path: "mtp.layers.0.body.ema",
        shape: &[],
        start: 1f64,
    },
];
/// Tables, in canonical order.
pub static TABLES: &[TableSpec] = &[
    TableSpec {
        path: "embed.byte_codes",
        shape: &[2048, 16],
        source: "tokenizer.byte_codes",
    },
    TableSpec {
        path: "embed.byte_counts",
        shape: &[2048],
        source: "tokenizer.byte_counts",
    },
];
/// What one step hands to the next.
pub static CARRIES: &[CarrySpec] = &[
    CarrySpec {
        name: "memory",
        shape: &[-1, 64],
    },
];
fn carry<'a>(inputs: &Inputs<'a>, index: usize) -> Result<&'a Tensor> {
    lightc_runtime::bind::carry(inputs, index)
}
impl Stage for Tiny2b {
    fn name(&self) -> &'static str {
        "tiny_2b"
    }
    fn source_hash(&self) -> &'static str {
        "da2656c5ab8b9960ddbac1c05b3813d3a322c6518dec85a36282926a5e35f47a"
    }
    fn params(&self) -> &'static [ParamSpec] {
        PARAMS
    }
    fn states(&self) -> &'static [StateSpec] {
        STATES
    }
    fn tables(&self) -> &'static [TableSpec] {
        TABLES
    }
    fn carries(&self) -> &'static [CarrySpec] {
        CARRIES
    }
    fn vocab(&self) -> i64 {
        2048
    }
    fn forward(&self, inputs: &Inputs<'_>) -> Result<Outputs> {
        let weights = language_model::Tensors::build(&mut FlatSource::new(inputs))?;
        let mut next = language_model::Tensors::build(&mut Empty)?;
        let (out_loss, out_ntp, out_mtp, out_aux, out_memory, saved) = language_model::forward(
            inputs.continues,
            &weights,
            &mut next,
            inputs.tokens,
            carry(inputs, 0)?,
            inputs.continues,
        )?;
        Ok(Outputs {
            values: vec![
                ("loss", out_loss), ("ntp", out_ntp), ("mtp", out_mtp), ("aux", out_aux)
            ],
            carries: vec![out_memory],
            states: FlatStates::collect(inputs, |sink| next.take(sink))?,
            saved: Box::new(saved),
        })
    }
    fn backward(
        &self,
        inputs: &Inputs<'_>,
        saved: Box<dyn Any>,
    ) -> Result<Vec<Option<Tensor>>> {
        let saved = lightc_runtime::bind::downcast::<language_model::Saved>(saved)?;
        let weights = language_model::Tensors::build(&mut FlatSource::new(inputs))?;
        let mut grads = language_model::Tensors::build(&mut Empty)?;
        let one = lightc_runtime::ops::constant_f32(1.0, inputs.continues)?;
        language_model::backward_loss(
            inputs.continues,
            &weights,
            &saved,
            &mut grads,
            &one,
        )?;
        Ok(ParamGrads::collect(|sink| grads.take(sink)))
    }
    fn train_step(&self, train: &mut TrainState, batch: &Batch) -> Result<StepReport> {
        let outputs = self.forward(&train.inputs(batch))?;
        let (forwarded, saved) = train.take(outputs)?;
        let gradients = self.backward(&train.inputs(batch), saved)?;
        let clipped = train.clip(gradients)?;
        train.update(&clipped)?;
        Ok(train.advance(forwarded, &clipped))
    }
}
/// Embedding of a token by its bytes, with no row per token.
///
/// A token with bytes `b_0 .. b_(L-1)` is the sparse vector `z` of length `D = 256 p` that has
/// `1/sqrt(L)` at each `j = b_i p + i`, less its mean, over (its unbiased standard deviation +
/// `eps`). Then `y = weight^T z`. The product is never formed: with `J` the `L` codes of the
/// token, `W_j` the rows of `weight` and `r` the sum of all rows,
///
/// ```text
/// y     = alpha (sum over J of W_j  -  L/D r)
/// alpha = 1 / (sqrt(L) (sigma + eps)),   sigma = sqrt((1 - L/D) / (D - 1))
///
/// ```
/// which reads `L` rows in place of `D`. A token without bytes embeds as 0. The norm that follows
/// is a separate block.
pub mod kronecker_embedding {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Table index[vocab=2048, p=16] from tokenizer.byte_codes.
        pub byte_codes: T,
        /// Table index[vocab=2048] from tokenizer.byte_counts.
        pub byte_counts: T,
        /// Parameter act[j=4096, d=64], normal(0.0003125), trained.
        pub weight: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                byte_codes: source.table()?,
                byte_counts: source.table()?,
                weight: source.param()?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.table(self.byte_codes);
            sink.table(self.byte_counts);
            sink.param(self.weight);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// index[b, w, p=16]
        pub codes: Tensor,
        /// f32[b, w]
        pub share: Tensor,
        /// f32[b, w]
        pub alpha: Tensor,
    }
    /// `ids` index[b, w] -> act[b, w, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        ids: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let wide = ops::to_f32(weights.weight, like)?;
        let codes = ops::lookup(weights.byte_codes, ids)?;
        let v6 = ops::lookup(weights.byte_counts, ids)?;
        let n_codes = ops::to_f32(&v6, like)?;
        drop(v6);
        let share = ops::affine(&n_codes, 0.000244140625f64, 0f64)?;
        let present = ops::gather_sum(&wide, &codes)?;
        let total = ops::sum(&wide, &[0])?;
        drop(wide);
        let v11 = ops::affine(&share, -1f64, 1f64)?;
        let v12 = ops::affine(&v11, 0.0002442002442002442f64, 0f64)?;
        drop(v11);
        let spread = ops::sqrt(&v12)?;
        drop(v12);
        let v14 = ops::constant_f32(1f64, like)?;
        let v15 = ops::max(&n_codes, &v14)?;
        drop(n_codes);
        let v16 = ops::sqrt(&v15)?;
        drop(v15);
        let v17 = ops::affine(&spread, 1f64, 0.000001f64)?;
        drop(spread);
        let v18 = ops::mul(&v16, &v17)?;
        drop(v16);
        drop(v17);
        let alpha = ops::recip(&v18)?;
        drop(v18);
        let v20 = ops::contract(&share, &total, "bw,d->bwd")?;
        let v21 = ops::sub(&present, &v20)?;
        drop(present);
        drop(v20);
        let v22 = ops::mul(&ops::align(&alpha, &[0, 1, -1])?, &v21)?;
        drop(v21);
        let v23 = ops::to_act(&v22, like.kind())?;
        let saved = Saved {
            codes: codes,
            share: share,
            alpha: alpha,
        };
        Ok((v23, saved))
    }
    /// Takes `d_result` act[b, w, d=64], gives nothing; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        _weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<()> {
        let v1 = ops::to_f32(d_result, like)?;
        let v3 = ops::mul(&v1, &ops::align(&saved.alpha, &[0, 1, -1])?)?;
        drop(v1);
        let v4 = ops::affine(&v3, -1f64, 0f64)?;
        let v6 = ops::contract(&v4, &saved.share, "bwd,bw->d")?;
        drop(v4);
        let v7 = ops::broadcast(&v6, &[-1, 0], &[4096, 64])?;
        let v9 = ops::gather_sum_grad(&saved.codes, &v3, 4096)?;
        drop(v3);
        let v10 = ops::add(&v7, &v9)?;
        drop(v7);
        drop(v9);
        let v11 = ops::to_act(&v10, like.kind())?;
        accumulate(&mut grads.weight, v11)?;
        Ok(())
    }
}
/// Root-mean-square norm: `y = weight * x / sqrt(mean(x^2) + eps)`.
///
/// The mean runs over `d`. Statistics are 32-bit; the normalised value is rounded to the
/// compute precision before it meets the weight.
pub mod rms_norm {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[d=64], ones(), trained.
        pub weight: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors { weight: source.param()? })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.weight);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// f32[b, w, d=64]
        pub wide: Tensor,
        /// f32[b, w]
        pub v4: Tensor,
        /// f32[b, w]
        pub v5: Tensor,
        /// act[b, w, d=64]
        pub unit: Tensor,
        /// Length of axis `b`.
        pub size_b: i64,
        /// Length of axis `w`.
        pub size_w: i64,
    }
    /// `x` act[b, w, d=64] -> act[b, w, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let size_b = ops::length(x, 0)?;
        let size_w = ops::length(x, 1)?;
        let wide = ops::to_f32(x, like)?;
        let v2 = ops::square(&wide)?;
        let v3 = ops::mean(&v2, &[2])?;
        drop(v2);
        let v4 = ops::affine(&v3, 1f64, 0.000001f64)?;
        drop(v3);
        let v5 = ops::rsqrt(&v4)?;
        let v6 = ops::mul(&wide, &ops::align(&v5, &[0, 1, -1])?)?;
        let unit = ops::to_act(&v6, like.kind())?;
        drop(v6);
        let v9 = ops::mul(&unit, weights.weight)?;
        let saved = Saved {
            wide: wide,
            v4: v4,
            v5: v5,
            unit: unit,
            size_b,
            size_w,
        };
        Ok((v9, saved))
    }
    /// Takes `d_result` act[b, w, d=64], gives `d_x` act[b, w, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let size_b = saved.size_b;
        let size_w = saved.size_w;
        let v2 = ops::mul(d_result, weights.weight)?;
        let v4 = ops::mul(d_result, &saved.unit)?;
        let v5 = ops::sum(&v4, &[0, 1])?;
        drop(v4);
        let v6 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v8 = ops::mul(&v6, &ops::align(&saved.v5, &[0, 1, -1])?)?;
        let v10 = ops::mul(&v6, &saved.wide)?;
        drop(v6);
        let v11 = ops::sum(&v10, &[2])?;
        drop(v10);
        let v13 = ops::rsqrt_grad(&saved.v4, &v11)?;
        drop(v11);
        let v14 = ops::affine(&v13, 1f64, 0f64)?;
        drop(v13);
        let v15 = ops::affine(&v14, 0.015625f64, 0f64)?;
        drop(v14);
        let v16 = ops::broadcast(&v15, &[0, 1, -1], &[size_b, size_w, 64])?;
        drop(v15);
        let v17 = ops::square_grad(&saved.wide, &v16)?;
        drop(v16);
        let v18 = ops::add(&v8, &v17)?;
        drop(v8);
        drop(v17);
        let v19 = ops::to_act(&v18, like.kind())?;
        accumulate(&mut grads.weight, v5)?;
        Ok(v19)
    }
}
/// Layer norm: `y = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias`.
///
/// Mean and population variance run over `d`, in 32 bits.
pub mod layer_norm {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[d=64], ones(), trained.
        pub weight: T,
        /// Parameter act[d=64], zeros(), trained.
        pub bias: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                weight: source.param()?,
                bias: source.param()?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.weight);
            sink.param(self.bias);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// f32[b, d=64]
        pub centred: Tensor,
        /// f32[b]
        pub v6: Tensor,
        /// f32[b]
        pub v7: Tensor,
        /// act[b, d=64]
        pub unit: Tensor,
        /// Length of axis `b`.
        pub size_b: i64,
    }
    /// `x` act[b, d=64] -> act[b, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let size_b = ops::length(x, 0)?;
        let wide = ops::to_f32(x, like)?;
        let v2 = ops::mean(&wide, &[1])?;
        let centred = ops::sub(&wide, &ops::align(&v2, &[0, -1])?)?;
        drop(wide);
        drop(v2);
        let v4 = ops::square(&centred)?;
        let v5 = ops::mean(&v4, &[1])?;
        drop(v4);
        let v6 = ops::affine(&v5, 1f64, 0.00001f64)?;
        drop(v5);
        let v7 = ops::rsqrt(&v6)?;
        let v8 = ops::mul(&centred, &ops::align(&v7, &[0, -1])?)?;
        let unit = ops::to_act(&v8, like.kind())?;
        drop(v8);
        let v11 = ops::mul(&unit, weights.weight)?;
        let v13 = ops::add(&v11, weights.bias)?;
        let saved = Saved {
            centred: centred,
            v6: v6,
            v7: v7,
            unit: unit,
            size_b,
        };
        Ok((v13, saved))
    }
    /// Takes `d_result` act[b, d=64], gives `d_x` act[b, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let size_b = saved.size_b;
        let v1 = ops::sum(d_result, &[0])?;
        let v3 = ops::mul(d_result, weights.weight)?;
        let v5 = ops::mul(d_result, &saved.unit)?;
        let v6 = ops::sum(&v5, &[0])?;
        drop(v5);
        let v7 = ops::to_f32(&v3, like)?;
        drop(v3);
        let v9 = ops::mul(&v7, &ops::align(&saved.v7, &[0, -1])?)?;
        let v11 = ops::mul(&v7, &saved.centred)?;
        drop(v7);
        let v12 = ops::sum(&v11, &[1])?;
        drop(v11);
        let v14 = ops::rsqrt_grad(&saved.v6, &v12)?;
        drop(v12);
        let v15 = ops::affine(&v14, 1f64, 0f64)?;
        drop(v14);
        let v16 = ops::affine(&v15, 0.015625f64, 0f64)?;
        drop(v15);
        let v17 = ops::broadcast(&v16, &[0, -1], &[size_b, 64])?;
        drop(v16);
        let v18 = ops::square_grad(&saved.centred, &v17)?;
        drop(v17);
        let v19 = ops::add(&v9, &v18)?;
        drop(v9);
        drop(v18);
        let v20 = ops::affine(&v19, -1f64, 0f64)?;
        let v21 = ops::sum(&v20, &[1])?;
        drop(v20);
        let v22 = ops::affine(&v21, 0.015625f64, 0f64)?;
        drop(v21);
        let v23 = ops::broadcast(&v22, &[0, -1], &[size_b, 64])?;
        drop(v22);
        let v24 = ops::add(&v19, &v23)?;
        drop(v19);
        drop(v23);
        let v25 = ops::to_act(&v24, like.kind())?;
        accumulate(&mut grads.weight, v6)?;
        accumulate(&mut grads.bias, v1)?;
        Ok(v25)
    }
}
/// Injection of the memory stream, a vector carried from the sequence before:
/// `y = x + continues * softplus(strength) * sigmoid(gate . x + gate_bias) * LayerNorm(memory)`.
///
/// `continues` is 1 where the sequence goes on from the one that `memory` came from, and 0 where
/// it starts anew. At the start `softplus(-2.5)` is 0.079.
pub mod memory_stream {
    use super::layer_norm;
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter f32[], constant(-2.5), trained.
        pub strength: T,
        /// `norm`
        pub norm: layer_norm::Tensors<T>,
        /// Parameter act[d=64], normal(0.02), trained.
        pub gate: T,
        /// Parameter f32[], zeros(), trained.
        pub gate_bias: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                strength: source.param()?,
                norm: layer_norm::Tensors::build(source)?,
                gate: source.param()?,
                gate_bias: source.param()?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.strength);
            self.norm.take(sink);
            sink.param(self.gate);
            sink.param(self.gate_bias);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, d=64]
        pub x: Tensor,
        /// f32[b, t]
        pub v7: Tensor,
        /// f32[b, t]
        pub openness: Tensor,
        /// f32[]
        pub v10: Tensor,
        /// f32[b]
        pub v11: Tensor,
        /// f32[b]
        pub v12: Tensor,
        /// act[b, t]
        pub amount: Tensor,
        /// act[b, d=64]
        pub v15: Tensor,
        /// What the call keeps.
        pub norm_call: layer_norm::Saved,
    }
    /// `x` act[b, t, d=64], `memory` act[b, d=64], `continues` act[b] -> act[b, t, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
        memory: &Tensor,
        continues: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let v4 = ops::contract(x, weights.gate, "btd,d->bt")?;
        let v5 = ops::to_f32(&v4, like)?;
        drop(v4);
        let v7 = ops::add(&v5, weights.gate_bias)?;
        drop(v5);
        let openness = ops::sigmoid(&v7)?;
        let v10 = ops::softplus(weights.strength)?;
        let v11 = ops::to_f32(continues, like)?;
        let v12 = ops::mul(&v10, &v11)?;
        let v13 = ops::mul(&openness, &ops::align(&v12, &[0, -1])?)?;
        let amount = ops::to_act(&v13, like.kind())?;
        drop(v13);
        let (v15, norm_call) = layer_norm::forward(like, &weights.norm, memory)?;
        let v16 = ops::contract(&amount, &v15, "bt,bd->btd")?;
        let v17 = ops::add(x, &v16)?;
        let saved = Saved {
            x: x.shallow_clone(),
            v7: v7,
            openness: openness,
            v10: v10,
            v11: v11,
            v12: v12,
            amount: amount,
            v15: v15,
            norm_call,
        };
        Ok((v17, saved))
    }
    /// Takes `d_result` act[b, t, d=64], gives `d_x` act[b, t, d=64], `d_memory` act[b, d=64], `d_continues` act[b]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let v2 = ops::contract(d_result, &saved.v15, "btd,bd->bt")?;
        let v4 = ops::contract(d_result, &saved.amount, "btd,bt->bd")?;
        let v5 = layer_norm::backward(
            like,
            &weights.norm,
            &saved.norm_call,
            &mut grads.norm,
            &v4,
        )?;
        drop(v4);
        let v6 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v8 = ops::mul(&v6, &ops::align(&saved.v12, &[0, -1])?)?;
        let v10 = ops::mul(&v6, &saved.openness)?;
        drop(v6);
        let v11 = ops::sum(&v10, &[1])?;
        drop(v10);
        let v13 = ops::mul(&v11, &saved.v11)?;
        let v15 = ops::mul(&v11, &saved.v10)?;
        drop(v11);
        let v16 = ops::sum(&v13, &[0])?;
        drop(v13);
        let v17 = ops::to_act(&v15, like.kind())?;
        drop(v15);
        let v19 = ops::softplus_grad(weights.strength, &v16)?;
        let v21 = ops::sigmoid_grad(&saved.v7, &v8)?;
        drop(v8);
        let v22 = ops::sum(&v21, &[0, 1])?;
        let v23 = ops::to_act(&v21, like.kind())?;
        drop(v21);
        let v25 = ops::contract(&v23, weights.gate, "bt,d->btd")?;
        let v27 = ops::contract(&v23, &saved.x, "bt,btd->d")?;
        drop(v23);
        let v28 = ops::add(d_result, &v25)?;
        accumulate(&mut grads.strength, v19)?;
        accumulate(&mut grads.gate, v27)?;
        accumulate(&mut grads.gate_bias, v22)?;
        Ok((v28, v5, v17))
    }
}
/// Root-mean-square norm: `y = weight * x / sqrt(mean(x^2) + eps)`.
///
/// The mean runs over `d`. Statistics are 32-bit; the normalised value is rounded to the
/// compute precision before it meets the weight.
pub mod rms_norm_2 {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[d=256], ones(), trained.
        pub weight: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors { weight: source.param()? })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.weight);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// f32[b, t, d=256]
        pub wide: Tensor,
        /// f32[b, t]
        pub v4: Tensor,
        /// f32[b, t]
        pub v5: Tensor,
        /// act[b, t, d=256]
        pub unit: Tensor,
        /// Length of axis `b`.
        pub size_b: i64,
        /// Length of axis `t`.
        pub size_t: i64,
    }
    /// `x` act[b, t, d=256] -> act[b, t, d=256].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let size_b = ops::length(x, 0)?;
        let size_t = ops::length(x, 1)?;
        let wide = ops::to_f32(x, like)?;
        let v2 = ops::square(&wide)?;
        let v3 = ops::mean(&v2, &[2])?;
        drop(v2);
        let v4 = ops::affine(&v3, 1f64, 0.000001f64)?;
        drop(v3);
        let v5 = ops::rsqrt(&v4)?;
        let v6 = ops::mul(&wide, &ops::align(&v5, &[0, 1, -1])?)?;
        let unit = ops::to_act(&v6, like.kind())?;
        drop(v6);
        let v9 = ops::mul(&unit, weights.weight)?;
        let saved = Saved {
            wide: wide,
            v4: v4,
            v5: v5,
            unit: unit,
            size_b,
            size_t,
        };
        Ok((v9, saved))
    }
    /// Takes `d_result` act[b, t, d=256], gives `d_x` act[b, t, d=256]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let size_b = saved.size_b;
        let size_t = saved.size_t;
        let v2 = ops::mul(d_result, weights.weight)?;
        let v4 = ops::mul(d_result, &saved.unit)?;
        let v5 = ops::sum(&v4, &[0, 1])?;
        drop(v4);
        let v6 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v8 = ops::mul(&v6, &ops::align(&saved.v5, &[0, 1, -1])?)?;
        let v10 = ops::mul(&v6, &saved.wide)?;
        drop(v6);
        let v11 = ops::sum(&v10, &[2])?;
        drop(v10);
        let v13 = ops::rsqrt_grad(&saved.v4, &v11)?;
        drop(v11);
        let v14 = ops::affine(&v13, 1f64, 0f64)?;
        drop(v13);
        let v15 = ops::affine(&v14, 0.00390625f64, 0f64)?;
        drop(v14);
        let v16 = ops::broadcast(&v15, &[0, 1, -1], &[size_b, size_t, 256])?;
        drop(v15);
        let v17 = ops::square_grad(&saved.wide, &v16)?;
        drop(v16);
        let v18 = ops::add(&v8, &v17)?;
        drop(v8);
        drop(v17);
        let v19 = ops::to_act(&v18, like.kind())?;
        accumulate(&mut grads.weight, v5)?;
        Ok(v19)
    }
}
/// Root-mean-square norm: `y = weight * x / sqrt(mean(x^2) + eps)`.
///
/// The mean runs over `d`. Statistics are 32-bit; the normalised value is rounded to the
/// compute precision before it meets the weight.
pub mod rms_norm_3 {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[d=64], ones(), trained.
        pub weight: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors { weight: source.param()? })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.weight);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// f32[b, t, d=64]
        pub wide: Tensor,
        /// f32[b, t]
        pub v4: Tensor,
        /// f32[b, t]
        pub v5: Tensor,
        /// act[b, t, d=64]
        pub unit: Tensor,
        /// Length of axis `b`.
        pub size_b: i64,
        /// Length of axis `t`.
        pub size_t: i64,
    }
    /// `x` act[b, t, d=64] -> act[b, t, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let size_b = ops::length(x, 0)?;
        let size_t = ops::length(x, 1)?;
        let wide = ops::to_f32(x, like)?;
        let v2 = ops::square(&wide)?;
        let v3 = ops::mean(&v2, &[2])?;
        drop(v2);
        let v4 = ops::affine(&v3, 1f64, 0.000001f64)?;
        drop(v3);
        let v5 = ops::rsqrt(&v4)?;
        let v6 = ops::mul(&wide, &ops::align(&v5, &[0, 1, -1])?)?;
        let unit = ops::to_act(&v6, like.kind())?;
        drop(v6);
        let v9 = ops::mul(&unit, weights.weight)?;
        let saved = Saved {
            wide: wide,
            v4: v4,
            v5: v5,
            unit: unit,
            size_b,
            size_t,
        };
        Ok((v9, saved))
    }
    /// Takes `d_result` act[b, t, d=64], gives `d_x` act[b, t, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let size_b = saved.size_b;
        let size_t = saved.size_t;
        let v2 = ops::mul(d_result, weights.weight)?;
        let v4 = ops::mul(d_result, &saved.unit)?;
        let v5 = ops::sum(&v4, &[0, 1])?;
        drop(v4);
        let v6 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v8 = ops::mul(&v6, &ops::align(&saved.v5, &[0, 1, -1])?)?;
        let v10 = ops::mul(&v6, &saved.wide)?;
        drop(v6);
        let v11 = ops::sum(&v10, &[2])?;
        drop(v10);
        let v13 = ops::rsqrt_grad(&saved.v4, &v11)?;
        drop(v11);
        let v14 = ops::affine(&v13, 1f64, 0f64)?;
        drop(v13);
        let v15 = ops::affine(&v14, 0.015625f64, 0f64)?;
        drop(v14);
        let v16 = ops::broadcast(&v15, &[0, 1, -1], &[size_b, size_t, 64])?;
        drop(v15);
        let v17 = ops::square_grad(&saved.wide, &v16)?;
        drop(v16);
        let v18 = ops::add(&v8, &v17)?;
        drop(v8);
        drop(v17);
        let v19 = ops::to_act(&v18, like.kind())?;
        accumulate(&mut grads.weight, v5)?;
        Ok(v19)
    }
}
/// Short causal convolution per channel, then SiLU:
/// `y_t = silu(sum over i of weight_i x_(t - taps + 1 + i) + bias)`, with zeros before the start.
pub mod short_conv {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[e=64, taps=4], uniform(-0.5, 0.5), trained.
        pub weight: T,
        /// Parameter act[e=64], uniform(-0.5, 0.5), trained.
        pub bias: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                weight: source.param()?,
                bias: source.param()?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.weight);
            sink.param(self.bias);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, e=64]
        pub x: Tensor,
        /// act[b, t, e=64]
        pub v4: Tensor,
    }
    /// `x` act[b, t, e=64] -> act[b, t, e=64].
    pub fn forward(
        _like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let v2 = ops::causal_conv(x, weights.weight)?;
        let v4 = ops::add(&v2, weights.bias)?;
        drop(v2);
        let v5 = ops::silu(&v4)?;
        let saved = Saved {
            x: x.shallow_clone(),
            v4: v4,
        };
        Ok((v5, saved))
    }
    /// Takes `d_result` act[b, t, e=64], gives `d_x` act[b, t, e=64]; adds parameter gradients to `grads`.
    pub fn backward(
        _like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let v2 = ops::silu_grad(&saved.v4, d_result)?;
        let v3 = ops::sum(&v2, &[0, 1])?;
        let v5 = ops::causal_conv_input_grad(&v2, weights.weight)?;
        let v7 = ops::causal_conv_weight_grad(&saved.x, &v2, 4)?;
        accumulate(&mut grads.weight, v7)?;
        accumulate(&mut grads.bias, v3)?;
        Ok(v5)
    }
}
/// Root-mean-square norm: `y = weight * x / sqrt(mean(x^2) + eps)`.
///
/// The mean runs over `d`. Statistics are 32-bit; the normalised value is rounded to the
/// compute precision before it meets the weight.
pub mod rms_norm_4 {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[d=32], ones(), trained.
        pub weight: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors { weight: source.param()? })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.weight);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// f32[b, t, h, d=32]
        pub wide: Tensor,
        /// f32[b, t, h]
        pub v4: Tensor,
        /// f32[b, t, h]
        pub v5: Tensor,
        /// act[b, t, h, d=32]
        pub unit: Tensor,
        /// Length of axis `b`.
        pub size_b: i64,
        /// Length of axis `t`.
        pub size_t: i64,
        /// Length of axis `h`.
        pub size_h: i64,
    }
    /// `x` act[b, t, h, d=32] -> act[b, t, h, d=32].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let size_b = ops::length(x, 0)?;
        let size_t = ops::length(x, 1)?;
        let size_h = ops::length(x, 2)?;
        let wide = ops::to_f32(x, like)?;
        let v2 = ops::square(&wide)?;
        let v3 = ops::mean(&v2, &[3])?;
        drop(v2);
        let v4 = ops::affine(&v3, 1f64, 0.000001f64)?;
        drop(v3);
        let v5 = ops::rsqrt(&v4)?;
        let v6 = ops::mul(&wide, &ops::align(&v5, &[0, 1, 2, -1])?)?;
        let unit = ops::to_act(&v6, like.kind())?;
        drop(v6);
        let v9 = ops::mul(&unit, weights.weight)?;
        let saved = Saved {
            wide: wide,
            v4: v4,
            v5: v5,
            unit: unit,
            size_b,
            size_t,
            size_h,
        };
        Ok((v9, saved))
    }
    /// Takes `d_result` act[b, t, h, d=32], gives `d_x` act[b, t, h, d=32]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let size_b = saved.size_b;
        let size_t = saved.size_t;
        let size_h = saved.size_h;
        let v2 = ops::mul(d_result, weights.weight)?;
        let v4 = ops::mul(d_result, &saved.unit)?;
        let v5 = ops::sum(&v4, &[0, 1, 2])?;
        drop(v4);
        let v6 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v8 = ops::mul(&v6, &ops::align(&saved.v5, &[0, 1, 2, -1])?)?;
        let v10 = ops::mul(&v6, &saved.wide)?;
        drop(v6);
        let v11 = ops::sum(&v10, &[3])?;
        drop(v10);
        let v13 = ops::rsqrt_grad(&saved.v4, &v11)?;
        drop(v11);
        let v14 = ops::affine(&v13, 1f64, 0f64)?;
        drop(v13);
        let v15 = ops::affine(&v14, 0.03125f64, 0f64)?;
        drop(v14);
        let v16 = ops::broadcast(&v15, &[0, 1, 2, -1], &[size_b, size_t, size_h, 32])?;
        drop(v15);
        let v17 = ops::square_grad(&saved.wide, &v16)?;
        drop(v16);
        let v18 = ops::add(&v8, &v17)?;
        drop(v8);
        drop(v17);
        let v19 = ops::to_act(&v18, like.kind())?;
        accumulate(&mut grads.weight, v5)?;
        Ok(v19)
    }
}
/// Gated DeltaNet: a linear-time mixer with one `[k, m]` state per head.
///
/// Queries, keys and values pass a short convolution with SiLU and are cut into heads. Queries and
/// keys are divided by `max(|.|, 1e-12)` and rotated. With the write strength `beta` and the decay
/// `exp(g)`, both per head,
///
/// ```text
/// beta = sigmoid(write x + write_bias)
/// g    = -exp(a_log) softplus(decay x + decay_bias + dt_bias)
/// S_t  = exp(g_t) S_(t-1) + beta_t k_t (v_t - exp(g_t) S_(t-1)^T k_t)^T
/// o_t  = S_t^T q_t + skip (q_t . k_t) v_t
/// y_t  = out [ sigmoid(gate x_t) * RmsNorm(o_t) ]
///
/// ```
/// Decay, gates, norms and rotation are 32-bit. The decay stays in log space, so it needs no floor.
pub mod gated_delta_net {
    use super::{rms_norm_4, short_conv};
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub query: T,
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub key: T,
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub value: T,
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub gate: T,
        /// `query_conv`
        pub query_conv: short_conv::Tensors<T>,
        /// `key_conv`
        pub key_conv: short_conv::Tensors<T>,
        /// `value_conv`
        pub value_conv: short_conv::Tensors<T>,
        /// Parameter act[h=2, d=64], normal(0.02), trained.
        pub write: T,
        /// Parameter f32[h=2], zeros(), trained.
        pub write_bias: T,
        /// Parameter act[h=2, d=64], normal(0.02), trained.
        pub decay: T,
        /// Parameter f32[h=2], zeros(), trained.
        pub decay_bias: T,
        /// Parameter f32[h=2], log_uniform(0.0, 16.0), trained.
        pub a_log: T,
        /// Parameter f32[h=2], uniform(-0.01, 0.01), trained.
        pub dt_bias: T,
        /// Parameter f32[h=2], ones(), trained.
        pub skip: T,
        /// `out_norm`
        pub out_norm: rms_norm_4::Tensors<T>,
        /// Parameter act[d=64, e=64], normal(0.02), trained.
        pub out: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                query: source.param()?,
                key: source.param()?,
                value: source.param()?,
                gate: source.param()?,
                query_conv: short_conv::Tensors::build(source)?,
                key_conv: short_conv::Tensors::build(source)?,
                value_conv: short_conv::Tensors::build(source)?,
                write: source.param()?,
                write_bias: source.param()?,
                decay: source.param()?,
                decay_bias: source.param()?,
                a_log: source.param()?,
                dt_bias: source.param()?,
                skip: source.param()?,
                out_norm: rms_norm_4::Tensors::build(source)?,
                out: source.param()?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.query);
            sink.param(self.key);
            sink.param(self.value);
            sink.param(self.gate);
            self.query_conv.take(sink);
            self.key_conv.take(sink);
            self.value_conv.take(sink);
            sink.param(self.write);
            sink.param(self.write_bias);
            sink.param(self.decay);
            sink.param(self.decay_bias);
            sink.param(self.a_log);
            sink.param(self.dt_bias);
            sink.param(self.skip);
            self.out_norm.take(sink);
            sink.param(self.out);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, d=64]
        pub x: Tensor,
        /// f32[b, t, h=2, k=32]
        pub q_heads: Tensor,
        /// f32[b, t, h=2, k=32]
        pub k_heads: Tensor,
        /// act[b, t, h=2, m=32]
        pub values: Tensor,
        /// f32[b, t, h=2]
        pub v19: Tensor,
        /// f32[b, t, h=2]
        pub v21: Tensor,
        /// f32[b, t, h=2]
        pub v22: Tensor,
        /// f32[b, t, h=2]
        pub v25: Tensor,
        /// f32[b, t, h=2]
        pub v27: Tensor,
        /// f32[b, t, h=2]
        pub v28: Tensor,
        /// act[b, t, h=2, k=32]
        pub queries: Tensor,
        /// act[b, t, h=2, k=32]
        pub keys: Tensor,
        /// f32[b, t, h=2]
        pub v38: Tensor,
        /// f32[b, t, h=2]
        pub beta: Tensor,
        /// f32[b, t, h=2]
        pub v46: Tensor,
        /// f32[b, t, h=2]
        pub pace: Tensor,
        /// f32[h=2]
        pub v50: Tensor,
        /// f32[b, t, h=2]
        pub log_decay: Tensor,
        /// f32[b, t, h=2, k=32]
        pub v53: Tensor,
        /// f32[b, t, h=2, k=32]
        pub v54: Tensor,
        /// f32[b, t, h=2]
        pub agreement: Tensor,
        /// f32[b, t, h=2]
        pub v59: Tensor,
        /// f32[b, t, h=2, m=32]
        pub v60: Tensor,
        /// f32[b, t, h=2, m=32]
        pub v64: Tensor,
        /// f32[b, t, h=2, m=32]
        pub v65: Tensor,
        /// f32[b, t, h=2, m=32]
        pub v67: Tensor,
        /// act[b, t, e=64]
        pub v70: Tensor,
        /// Length of axis `b`.
        pub size_b: i64,
        /// Length of axis `t`.
        pub size_t: i64,
        /// What the call keeps.
        pub query_conv_call: short_conv::Saved,
        /// What the call keeps.
        pub key_conv_call: short_conv::Saved,
        /// What the call keeps.
        pub value_conv_call: short_conv::Saved,
        /// What the call keeps.
        pub out_norm_call: rms_norm_4::Saved,
    }
    /// `x` act[b, t, d=64] -> act[b, t, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let size_b = ops::length(x, 0)?;
        let size_t = ops::length(x, 1)?;
        let v2 = ops::contract(x, weights.query, "btd,ed->bte")?;
        let (v3, query_conv_call) = short_conv::forward(like, &weights.query_conv, &v2)?;
        drop(v2);
        let v4 = ops::split(&v3, 2, &[2, 32])?;
        drop(v3);
        let q_heads = ops::to_f32(&v4, like)?;
        drop(v4);
        let v7 = ops::contract(x, weights.key, "btd,ed->bte")?;
        let (v8, key_conv_call) = short_conv::forward(like, &weights.key_conv, &v7)?;
        drop(v7);
        let v9 = ops::split(&v8, 2, &[2, 32])?;
        drop(v8);
        let k_heads = ops::to_f32(&v9, like)?;
        drop(v9);
        let v12 = ops::contract(x, weights.value, "btd,ed->bte")?;
        let (v13, value_conv_call) = short_conv::forward(
            like,
            &weights.value_conv,
            &v12,
        )?;
        drop(v12);
        let values = ops::split(&v13, 2, &[2, 32])?;
        drop(v13);
        let v16 = ops::contract(x, weights.gate, "btd,ed->bte")?;
        let gates = ops::split(&v16, 2, &[2, 32])?;
        drop(v16);
        let v18 = ops::square(&q_heads)?;
        let v19 = ops::sum(&v18, &[3])?;
        drop(v18);
        let v20 = ops::constant_f32(0.000000000000000000000001f64, like)?;
        let v21 = ops::max(&v19, &v20)?;
        let v22 = ops::rsqrt(&v21)?;
        let q_unit = ops::mul(&q_heads, &ops::align(&v22, &[0, 1, 2, -1])?)?;
        let v24 = ops::square(&k_heads)?;
        let v25 = ops::sum(&v24, &[3])?;
        drop(v24);
        let v26 = ops::constant_f32(0.000000000000000000000001f64, like)?;
        let v27 = ops::max(&v25, &v26)?;
        let v28 = ops::rsqrt(&v27)?;
        let k_unit = ops::mul(&k_heads, &ops::align(&v28, &[0, 1, 2, -1])?)?;
        let v30 = ops::rotary(&q_unit, 1, 100000f64, false)?;
        drop(q_unit);
        let queries = ops::to_act(&v30, like.kind())?;
        drop(v30);
        let v32 = ops::rotary(&k_unit, 1, 100000f64, false)?;
        drop(k_unit);
        let keys = ops::to_act(&v32, like.kind())?;
        drop(v32);
        let v35 = ops::contract(x, weights.write, "btd,hd->bth")?;
        let v36 = ops::to_f32(&v35, like)?;
        drop(v35);
        let v38 = ops::add(&v36, weights.write_bias)?;
        drop(v36);
        let beta = ops::sigmoid(&v38)?;
        let v41 = ops::contract(x, weights.decay, "btd,hd->bth")?;
        let v42 = ops::to_f32(&v41, like)?;
        drop(v41);
        let v44 = ops::add(&v42, weights.decay_bias)?;
        drop(v42);
        let v46 = ops::add(&v44, weights.dt_bias)?;
        drop(v44);
        let pace = ops::softplus(&v46)?;
        let v49 = ops::exp(weights.a_log)?;
        let v50 = ops::affine(&v49, -1f64, 0f64)?;
        let log_decay = ops::mul(&v50, &pace)?;
        let read = ops::gated_delta_rule(&queries, &keys, &values, &log_decay, &beta)?;
        let v53 = ops::to_f32(&queries, like)?;
        let v54 = ops::to_f32(&keys, like)?;
        let v55 = ops::mul(&v53, &v54)?;
        let agreement = ops::sum(&v55, &[3])?;
        drop(v55);
        let v57 = ops::to_f32(&read, like)?;
        drop(read);
        let v59 = ops::mul(weights.skip, &agreement)?;
        let v60 = ops::to_f32(&values, like)?;
        let v61 = ops::mul(&ops::align(&v59, &[0, 1, 2, -1])?, &v60)?;
        let v62 = ops::add(&v57, &v61)?;
        drop(v57);
        drop(v61);
        let o = ops::to_act(&v62, like.kind())?;
        drop(v62);
        let v64 = ops::to_f32(&gates, like)?;
        drop(gates);
        let v65 = ops::sigmoid(&v64)?;
        let (v66, out_norm_call) = rms_norm_4::forward(like, &weights.out_norm, &o)?;
        drop(o);
        let v67 = ops::to_f32(&v66, like)?;
        drop(v66);
        let v68 = ops::mul(&v65, &v67)?;
        let gated = ops::to_act(&v68, like.kind())?;
        drop(v68);
        let v70 = ops::merge(&gated, 2, 2)?;
        drop(gated);
        let v72 = ops::contract(&v70, weights.out, "bte,de->btd")?;
        let saved = Saved {
            x: x.shallow_clone(),
            q_heads: q_heads,
            k_heads: k_heads,
            values: values,
            v19: v19,
            v21: v21,
            v22: v22,
            v25: v25,
            v27: v27,
            v28: v28,
            queries: queries,
            keys: keys,
            v38: v38,
            beta: beta,
            v46: v46,
            pace: pace,
            v50: v50,
            log_decay: log_decay,
            v53: v53,
            v54: v54,
            agreement: agreement,
            v59: v59,
            v60: v60,
            v64: v64,
            v65: v65,
            v67: v67,
            v70: v70,
            size_b,
            size_t,
            query_conv_call,
            key_conv_call,
            value_conv_call,
            out_norm_call,
        };
        Ok((v72, saved))
    }
    /// Takes `d_result` act[b, t, d=64], gives `d_x` act[b, t, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let size_b = saved.size_b;
        let size_t = saved.size_t;
        let v2 = ops::contract(d_result, weights.out, "btd,de->bte")?;
        let v4 = ops::contract(d_result, &saved.v70, "btd,bte->de")?;
        let v5 = ops::split(&v2, 2, &[2, 32])?;
        drop(v2);
        let v6 = ops::to_f32(&v5, like)?;
        drop(v5);
        let v8 = ops::mul(&v6, &saved.v67)?;
        let v10 = ops::mul(&v6, &saved.v65)?;
        drop(v6);
        let v11 = ops::to_act(&v10, like.kind())?;
        drop(v10);
        let v12 = rms_norm_4::backward(
            like,
            &weights.out_norm,
            &saved.out_norm_call,
            &mut grads.out_norm,
            &v11,
        )?;
        drop(v11);
        let v14 = ops::sigmoid_grad(&saved.v64, &v8)?;
        drop(v8);
        let v15 = ops::to_act(&v14, like.kind())?;
        drop(v14);
        let v16 = ops::to_f32(&v12, like)?;
        drop(v12);
        let v18 = ops::mul(&v16, &saved.v60)?;
        let v20 = ops::mul(&v16, &ops::align(&saved.v59, &[0, 1, 2, -1])?)?;
        let v21 = ops::sum(&v18, &[3])?;
        drop(v18);
        let v22 = ops::to_act(&v20, like.kind())?;
        drop(v20);
        let v24 = ops::mul(&v21, &saved.agreement)?;
        let v26 = ops::mul(&v21, weights.skip)?;
        drop(v21);
        let v27 = ops::sum(&v24, &[0, 1])?;
        drop(v24);
        let v28 = ops::to_act(&v16, like.kind())?;
        drop(v16);
        let v29 = ops::broadcast(&v26, &[0, 1, 2, -1], &[size_b, size_t, 2, 32])?;
        drop(v26);
        let v31 = ops::mul(&v29, &saved.v54)?;
        let v33 = ops::mul(&v29, &saved.v53)?;
        drop(v29);
        let v34 = ops::to_act(&v33, like.kind())?;
        drop(v33);
        let v35 = ops::to_act(&v31, like.kind())?;
        drop(v31);
        let (v41, v42, v43, v44, v45) = ops::gated_delta_rule_grad(
            &saved.queries,
            &saved.keys,
            &saved.values,
            &saved.log_decay,
            &saved.beta,
            &v28,
        )?;
        drop(v28);
        let v46 = ops::add(&v35, &v41)?;
        drop(v35);
        drop(v41);
        let v47 = ops::add(&v34, &v42)?;
        drop(v34);
        drop(v42);
        let v48 = ops::add(&v22, &v43)?;
        drop(v22);
        drop(v43);
        let v50 = ops::mul(&v44, &saved.pace)?;
        let v52 = ops::mul(&v44, &saved.v50)?;
        drop(v44);
        let v53 = ops::sum(&v50, &[0, 1])?;
        drop(v50);
        let v54 = ops::affine(&v53, -1f64, 0f64)?;
        let v56 = ops::exp_grad(weights.a_log, &v54)?;
        let v58 = ops::softplus_grad(&saved.v46, &v52)?;
        drop(v52);
        let v59 = ops::sum(&v58, &[0, 1])?;
        let v60 = ops::sum(&v58, &[0, 1])?;
        let v61 = ops::to_act(&v58, like.kind())?;
        drop(v58);
        let v63 = ops::contract(&v61, weights.decay, "bth,hd->btd")?;
        let v65 = ops::contract(&v61, &saved.x, "bth,btd->hd")?;
        drop(v61);
        let v67 = ops::sigmoid_grad(&saved.v38, &v45)?;
        drop(v45);
        let v68 = ops::sum(&v67, &[0, 1])?;
        let v69 = ops::to_act(&v67, like.kind())?;
        drop(v67);
        let v71 = ops::contract(&v69, weights.write, "bth,hd->btd")?;
        let v72 = ops::contract(&v69, &saved.x, "bth,btd->hd")?;
        drop(v69);
        let v73 = ops::add(&v63, &v71)?;
        drop(v63);
        drop(v71);
        let v74 = ops::to_f32(&v47, like)?;
        drop(v47);
        let v75 = ops::rotary(&v74, 1, 100000f64, true)?;
        drop(v74);
        let v76 = ops::to_f32(&v46, like)?;
        drop(v46);
        let v77 = ops::rotary(&v76, 1, 100000f64, true)?;
        drop(v76);
        let v79 = ops::mul(&v75, &ops::align(&saved.v28, &[0, 1, 2, -1])?)?;
        let v81 = ops::mul(&v75, &saved.k_heads)?;
        drop(v75);
        let v82 = ops::sum(&v81, &[3])?;
        drop(v81);
        let v84 = ops::rsqrt_grad(&saved.v27, &v82)?;
        drop(v82);
        let v86 = ops::constant_f32(0.000000000000000000000001f64, like)?;
        let v87 = ops::ge(&saved.v25, &v86)?;
        let v88 = ops::constant_f32(0f64, like)?;
        let v89 = ops::where_(&v87, &v84, &v88)?;
        drop(v84);
        drop(v87);
        let v90 = ops::broadcast(&v89, &[0, 1, 2, -1], &[size_b, size_t, 2, 32])?;
        drop(v89);
        let v91 = ops::square_grad(&saved.k_heads, &v90)?;
        drop(v90);
        let v92 = ops::add(&v79, &v91)?;
        drop(v79);
        drop(v91);
        let v94 = ops::mul(&v77, &ops::align(&saved.v22, &[0, 1, 2, -1])?)?;
        let v96 = ops::mul(&v77, &saved.q_heads)?;
        drop(v77);
        let v97 = ops::sum(&v96, &[3])?;
        drop(v96);
        let v99 = ops::rsqrt_grad(&saved.v21, &v97)?;
        drop(v97);
        let v101 = ops::constant_f32(0.000000000000000000000001f64, like)?;
        let v102 = ops::ge(&saved.v19, &v101)?;
        let v103 = ops::constant_f32(0f64, like)?;
        let v104 = ops::where_(&v102, &v99, &v103)?;
        drop(v99);
        drop(v102);
        let v105 = ops::broadcast(&v104, &[0, 1, 2, -1], &[size_b, size_t, 2, 32])?;
        drop(v104);
        let v106 = ops::square_grad(&saved.q_heads, &v105)?;
        drop(v105);
        let v107 = ops::add(&v94, &v106)?;
        drop(v94);
        drop(v106);
        let v108 = ops::merge(&v15, 2, 2)?;
        drop(v15);
        let v110 = ops::contract(&v108, weights.gate, "bte,ed->btd")?;
        let v111 = ops::contract(&v108, &saved.x, "bte,btd->ed")?;
        drop(v108);
        let v112 = ops::add(&v73, &v110)?;
        drop(v73);
        drop(v110);
        let v113 = ops::merge(&v48, 2, 2)?;
        drop(v48);
        let v114 = short_conv::backward(
            like,
            &weights.value_conv,
            &saved.value_conv_call,
            &mut grads.value_conv,
            &v113,
        )?;
        drop(v113);
        let v116 = ops::contract(&v114, weights.value, "bte,ed->btd")?;
        let v117 = ops::contract(&v114, &saved.x, "bte,btd->ed")?;
        drop(v114);
        let v118 = ops::add(&v112, &v116)?;
        drop(v112);
        drop(v116);
        let v119 = ops::to_act(&v92, like.kind())?;
        drop(v92);
        let v120 = ops::merge(&v119, 2, 2)?;
        drop(v119);
        let v121 = short_conv::backward(
            like,
            &weights.key_conv,
            &saved.key_conv_call,
            &mut grads.key_conv,
            &v120,
        )?;
        drop(v120);
        let v123 = ops::contract(&v121, weights.key, "bte,ed->btd")?;
        let v124 = ops::contract(&v121, &saved.x, "bte,btd->ed")?;
        drop(v121);
        let v125 = ops::add(&v118, &v123)?;
        drop(v118);
        drop(v123);
        let v126 = ops::to_act(&v107, like.kind())?;
        drop(v107);
        let v127 = ops::merge(&v126, 2, 2)?;
        drop(v126);
        let v128 = short_conv::backward(
            like,
            &weights.query_conv,
            &saved.query_conv_call,
            &mut grads.query_conv,
            &v127,
        )?;
        drop(v127);
        let v130 = ops::contract(&v128, weights.query, "bte,ed->btd")?;
        let v131 = ops::contract(&v128, &saved.x, "bte,btd->ed")?;
        drop(v128);
        let v132 = ops::add(&v125, &v130)?;
        accumulate(&mut grads.query, v131)?;
        accumulate(&mut grads.key, v124)?;
        accumulate(&mut grads.value, v117)?;
        accumulate(&mut grads.gate, v111)?;
        accumulate(&mut grads.write, v72)?;
        accumulate(&mut grads.write_bias, v68)?;
        accumulate(&mut grads.decay, v65)?;
        accumulate(&mut grads.decay_bias, v60)?;
        accumulate(&mut grads.a_log, v56)?;
        accumulate(&mut grads.dt_bias, v59)?;
        accumulate(&mut grads.skip, v27)?;
        accumulate(&mut grads.out, v4)?;
        Ok(v132)
    }
}
/// Manifold-constrained hyper-connection: runs an inner block on a mix of `n` residual streams.
///
/// With `u` the norm of all streams of one position, flattened to `w = n d`:
///
/// ```text
/// pre      = sigmoid(alpha_pre (phi_pre u) + bias_pre)                      [n]
/// post     = 2 sigmoid(alpha_post (phi_post u) + bias_post)                 [n]
/// residual = sinkhorn(alpha_residual (phi_residual u) + bias_residual)      [n, j]
/// y        = inner(pre_norm(sum over n of pre_n x_n))                       [d]
/// out_n    = sum over j of residual_nj x_j  +  post_n y                     [n, d]
///
/// ```
/// Sinkhorn makes the residual mix doubly stochastic with the column step last, so the mean over
/// streams of the residual part is that of `x`. At the start every mix is uniform: the wrapper
/// averages the streams and is not near the identity. Mixes are computed in 32 bits.
pub mod hyper_connection {
    use super::{gated_delta_net, rms_norm_2, rms_norm_3};
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// `flat_norm`
        pub flat_norm: rms_norm_2::Tensors<T>,
        /// Parameter act[n=4, w=256], normal(0.02), trained.
        pub phi_pre: T,
        /// Parameter act[n=4, w=256], normal(0.02), trained.
        pub phi_post: T,
        /// Parameter act[n=4, j=4, w=256], normal(0.02), trained.
        pub phi_residual: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_pre: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_post: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_residual: T,
        /// Parameter f32[n=4], zeros(), trained.
        pub bias_pre: T,
        /// Parameter f32[n=4], zeros(), trained.
        pub bias_post: T,
        /// Parameter f32[n=4, j=4], zeros(), trained.
        pub bias_residual: T,
        /// `pre_norm`
        pub pre_norm: rms_norm_3::Tensors<T>,
        /// `body`
        pub body: gated_delta_net::Tensors<T>,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                flat_norm: rms_norm_2::Tensors::build(source)?,
                phi_pre: source.param()?,
                phi_post: source.param()?,
                phi_residual: source.param()?,
                alpha_pre: source.param()?,
                alpha_post: source.param()?,
                alpha_residual: source.param()?,
                bias_pre: source.param()?,
                bias_post: source.param()?,
                bias_residual: source.param()?,
                pre_norm: rms_norm_3::Tensors::build(source)?,
                body: gated_delta_net::Tensors::build(source)?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            self.flat_norm.take(sink);
            sink.param(self.phi_pre);
            sink.param(self.phi_post);
            sink.param(self.phi_residual);
            sink.param(self.alpha_pre);
            sink.param(self.alpha_post);
            sink.param(self.alpha_residual);
            sink.param(self.bias_pre);
            sink.param(self.bias_post);
            sink.param(self.bias_residual);
            self.pre_norm.take(sink);
            self.body.take(sink);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, n=4, d=64]
        pub x: Tensor,
        /// act[b, t, w=256]
        pub u: Tensor,
        /// f32[b, t, n=4]
        pub v6: Tensor,
        /// f32[b, t, n=4]
        pub v9: Tensor,
        /// act[b, t, n=4]
        pub pre: Tensor,
        /// f32[b, t, n=4]
        pub v15: Tensor,
        /// f32[b, t, n=4]
        pub v18: Tensor,
        /// act[b, t, n=4]
        pub post: Tensor,
        /// f32[b, t, n=4, j=4]
        pub v25: Tensor,
        /// f32[b, t, n=4, j=4]
        pub logits: Tensor,
        /// act[b, t, n=4, j=4]
        pub residual: Tensor,
        /// act[b, t, d=64]
        pub y: Tensor,
        /// act[b, t, j=4, d=64]
        pub v34: Tensor,
        /// What the call keeps.
        pub flat_norm_call: rms_norm_2::Saved,
        /// What the call keeps.
        pub pre_norm_call: rms_norm_3::Saved,
        /// What the call keeps.
        pub body_call: gated_delta_net::Saved,
    }
    /// `x` act[b, t, n=4, d=64] -> act[b, t, n=4, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let v1 = ops::merge(x, 2, 2)?;
        let (u, flat_norm_call) = rms_norm_2::forward(like, &weights.flat_norm, &v1)?;
        drop(v1);
        let v5 = ops::contract(&u, weights.phi_pre, "btw,nw->btn")?;
        let v6 = ops::to_f32(&v5, like)?;
        drop(v5);
        let v7 = ops::mul(weights.alpha_pre, &v6)?;
        let v9 = ops::add(&v7, weights.bias_pre)?;
        drop(v7);
        let v10 = ops::sigmoid(&v9)?;
        let pre = ops::to_act(&v10, like.kind())?;
        drop(v10);
        let v14 = ops::contract(&u, weights.phi_post, "btw,nw->btn")?;
        let v15 = ops::to_f32(&v14, like)?;
        drop(v14);
        let v16 = ops::mul(weights.alpha_post, &v15)?;
        let v18 = ops::add(&v16, weights.bias_post)?;
        drop(v16);
        let v19 = ops::sigmoid(&v18)?;
        let v20 = ops::affine(&v19, 2f64, 0f64)?;
        drop(v19);
        let post = ops::to_act(&v20, like.kind())?;
        drop(v20);
        let v24 = ops::contract(&u, weights.phi_residual, "btw,njw->btnj")?;
        let v25 = ops::to_f32(&v24, like)?;
        drop(v24);
        let v26 = ops::mul(weights.alpha_residual, &v25)?;
        let logits = ops::add(&v26, weights.bias_residual)?;
        drop(v26);
        let v29 = ops::sinkhorn(&logits, 20, 0.000001f64)?;
        let residual = ops::to_act(&v29, like.kind())?;
        drop(v29);
        let v31 = ops::contract(&pre, x, "btn,btnd->btd")?;
        let (v32, pre_norm_call) = rms_norm_3::forward(like, &weights.pre_norm, &v31)?;
        drop(v31);
        let (y, body_call) = gated_delta_net::forward(like, &weights.body, &v32)?;
        drop(v32);
        let v34 = Tensor::shallow_clone(x);
        let mixed = ops::contract(&residual, &v34, "btnj,btjd->btnd")?;
        let written = ops::contract(&post, &y, "btn,btd->btnd")?;
        let v37 = ops::add(&mixed, &written)?;
        let saved = Saved {
            x: x.shallow_clone(),
            u: u,
            v6: v6,
            v9: v9,
            pre: pre,
            v15: v15,
            v18: v18,
            post: post,
            v25: v25,
            logits: logits,
            residual: residual,
            y: y,
            v34: v34,
            flat_norm_call,
            pre_norm_call,
            body_call,
        };
        Ok((v37, saved))
    }
    /// Takes `d_result` act[b, t, n=4, d=64], gives `d_x` act[b, t, n=4, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let v2 = ops::contract(d_result, &saved.y, "btnd,btd->btn")?;
        let v4 = ops::contract(d_result, &saved.post, "btnd,btn->btd")?;
        let v6 = ops::contract(d_result, &saved.v34, "btnd,btjd->btnj")?;
        let v8 = ops::contract(d_result, &saved.residual, "btnd,btnj->btdj")?;
        let v9 = ops::permute(&v8, &[0, 1, 3, 2])?;
        drop(v8);
        let v10 = Tensor::shallow_clone(&v9);
        drop(v9);
        let v11 = gated_delta_net::backward(
            like,
            &weights.body,
            &saved.body_call,
            &mut grads.body,
            &v4,
        )?;
        drop(v4);
        let v12 = rms_norm_3::backward(
            like,
            &weights.pre_norm,
            &saved.pre_norm_call,
            &mut grads.pre_norm,
            &v11,
        )?;
        drop(v11);
        let v14 = ops::contract(&v12, &saved.x, "btd,btnd->btn")?;
        let v16 = ops::contract(&v12, &saved.pre, "btd,btn->btdn")?;
        drop(v12);
        let v17 = ops::permute(&v16, &[0, 1, 3, 2])?;
        drop(v16);
        let v18 = ops::add(&v10, &v17)?;
        drop(v10);
        drop(v17);
        let v19 = ops::to_f32(&v6, like)?;
        drop(v6);
        let v21 = ops::sinkhorn_grad(&saved.logits, &v19, 20, 0.000001f64)?;
        drop(v19);
        let v22 = ops::sum(&v21, &[0, 1])?;
        let v24 = ops::mul(&v21, &saved.v25)?;
        let v26 = ops::mul(&v21, weights.alpha_residual)?;
        drop(v21);
        let v27 = ops::sum(&v24, &[0, 1, 2, 3])?;
        drop(v24);
        let v28 = ops::to_act(&v26, like.kind())?;
        drop(v26);
        let v30 = ops::contract(&v28, weights.phi_residual, "btnj,njw->btw")?;
        let v32 = ops::contract(&v28, &saved.u, "btnj,btw->njw")?;
        drop(v28);
        let v33 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v34 = ops::affine(&v33, 2f64, 0f64)?;
        drop(v33);
        let v36 = ops::sigmoid_grad(&saved.v18, &v34)?;
        drop(v34);
        let v37 = ops::sum(&v36, &[0, 1])?;
        let v39 = ops::mul(&v36, &saved.v15)?;
        let v41 = ops::mul(&v36, weights.alpha_post)?;
        drop(v36);
        let v42 = ops::sum(&v39, &[0, 1, 2])?;
        drop(v39);
        let v43 = ops::to_act(&v41, like.kind())?;
        drop(v41);
        let v45 = ops::contract(&v43, weights.phi_post, "btn,nw->btw")?;
        let v46 = ops::contract(&v43, &saved.u, "btn,btw->nw")?;
        drop(v43);
        let v47 = ops::add(&v30, &v45)?;
        drop(v30);
        drop(v45);
        let v48 = ops::to_f32(&v14, like)?;
        drop(v14);
        let v50 = ops::sigmoid_grad(&saved.v9, &v48)?;
        drop(v48);
        let v51 = ops::sum(&v50, &[0, 1])?;
        let v53 = ops::mul(&v50, &saved.v6)?;
        let v55 = ops::mul(&v50, weights.alpha_pre)?;
        drop(v50);
        let v56 = ops::sum(&v53, &[0, 1, 2])?;
        drop(v53);
        let v57 = ops::to_act(&v55, like.kind())?;
        drop(v55);
        let v59 = ops::contract(&v57, weights.phi_pre, "btn,nw->btw")?;
        let v60 = ops::contract(&v57, &saved.u, "btn,btw->nw")?;
        drop(v57);
        let v61 = ops::add(&v47, &v59)?;
        drop(v47);
        drop(v59);
        let v62 = rms_norm_2::backward(
            like,
            &weights.flat_norm,
            &saved.flat_norm_call,
            &mut grads.flat_norm,
            &v61,
        )?;
        drop(v61);
        let v63 = ops::split(&v62, 2, &[4, 64])?;
        drop(v62);
        let v64 = ops::add(&v18, &v63)?;
        accumulate(&mut grads.phi_pre, v60)?;
        accumulate(&mut grads.phi_post, v46)?;
        accumulate(&mut grads.phi_residual, v32)?;
        accumulate(&mut grads.alpha_pre, v56)?;
        accumulate(&mut grads.alpha_post, v42)?;
        accumulate(&mut grads.alpha_residual, v27)?;
        accumulate(&mut grads.bias_pre, v51)?;
        accumulate(&mut grads.bias_post, v37)?;
        accumulate(&mut grads.bias_residual, v22)?;
        Ok(v64)
    }
}
/// SwiGLU feed-forward: `y = down(silu(gate x) * up x)`, width `f`, no biases.
pub mod swi_glu {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[f=96, d=64], normal(0.02), trained.
        pub gate: T,
        /// Parameter act[f=96, d=64], normal(0.02), trained.
        pub up: T,
        /// Parameter act[d=64, f=96], normal(0.02), trained.
        pub down: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                gate: source.param()?,
                up: source.param()?,
                down: source.param()?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.gate);
            sink.param(self.up);
            sink.param(self.down);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, d=64]
        pub x: Tensor,
        /// act[b, t, f=96]
        pub v2: Tensor,
        /// act[b, t, f=96]
        pub v3: Tensor,
        /// act[b, t, f=96]
        pub v5: Tensor,
        /// act[b, t, f=96]
        pub hidden: Tensor,
    }
    /// `x` act[b, t, d=64] -> act[b, t, d=64].
    pub fn forward(
        _like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let v2 = ops::contract(x, weights.gate, "btd,fd->btf")?;
        let v3 = ops::silu(&v2)?;
        let v5 = ops::contract(x, weights.up, "btd,fd->btf")?;
        let hidden = ops::mul(&v3, &v5)?;
        let v8 = ops::contract(&hidden, weights.down, "btf,df->btd")?;
        let saved = Saved {
            x: x.shallow_clone(),
            v2: v2,
            v3: v3,
            v5: v5,
            hidden: hidden,
        };
        Ok((v8, saved))
    }
    /// Takes `d_result` act[b, t, d=64], gives `d_x` act[b, t, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        _like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let v2 = ops::contract(d_result, weights.down, "btd,df->btf")?;
        let v4 = ops::contract(d_result, &saved.hidden, "btd,btf->df")?;
        let v6 = ops::mul(&v2, &saved.v5)?;
        let v8 = ops::mul(&v2, &saved.v3)?;
        drop(v2);
        let v10 = ops::contract(&v8, weights.up, "btf,fd->btd")?;
        let v12 = ops::contract(&v8, &saved.x, "btf,btd->fd")?;
        drop(v8);
        let v14 = ops::silu_grad(&saved.v2, &v6)?;
        drop(v6);
        let v16 = ops::contract(&v14, weights.gate, "btf,fd->btd")?;
        let v17 = ops::contract(&v14, &saved.x, "btf,btd->fd")?;
        drop(v14);
        let v18 = ops::add(&v10, &v16)?;
        accumulate(&mut grads.gate, v17)?;
        accumulate(&mut grads.up, v12)?;
        accumulate(&mut grads.down, v4)?;
        Ok(v18)
    }
}
/// Manifold-constrained hyper-connection: runs an inner block on a mix of `n` residual streams.
///
/// With `u` the norm of all streams of one position, flattened to `w = n d`:
///
/// ```text
/// pre      = sigmoid(alpha_pre (phi_pre u) + bias_pre)                      [n]
/// post     = 2 sigmoid(alpha_post (phi_post u) + bias_post)                 [n]
/// residual = sinkhorn(alpha_residual (phi_residual u) + bias_residual)      [n, j]
/// y        = inner(pre_norm(sum over n of pre_n x_n))                       [d]
/// out_n    = sum over j of residual_nj x_j  +  post_n y                     [n, d]
///
/// ```
/// Sinkhorn makes the residual mix doubly stochastic with the column step last, so the mean over
/// streams of the residual part is that of `x`. At the start every mix is uniform: the wrapper
/// averages the streams and is not near the identity. Mixes are computed in 32 bits.
pub mod hyper_connection_2 {
    use super::{rms_norm_2, rms_norm_3, swi_glu};
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// `flat_norm`
        pub flat_norm: rms_norm_2::Tensors<T>,
        /// Parameter act[n=4, w=256], normal(0.02), trained.
        pub phi_pre: T,
        /// Parameter act[n=4, w=256], normal(0.02), trained.
        pub phi_post: T,
        /// Parameter act[n=4, j=4, w=256], normal(0.02), trained.
        pub phi_residual: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_pre: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_post: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_residual: T,
        /// Parameter f32[n=4], zeros(), trained.
        pub bias_pre: T,
        /// Parameter f32[n=4], zeros(), trained.
        pub bias_post: T,
        /// Parameter f32[n=4, j=4], zeros(), trained.
        pub bias_residual: T,
        /// `pre_norm`
        pub pre_norm: rms_norm_3::Tensors<T>,
        /// `body`
        pub body: swi_glu::Tensors<T>,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                flat_norm: rms_norm_2::Tensors::build(source)?,
                phi_pre: source.param()?,
                phi_post: source.param()?,
                phi_residual: source.param()?,
                alpha_pre: source.param()?,
                alpha_post: source.param()?,
                alpha_residual: source.param()?,
                bias_pre: source.param()?,
                bias_post: source.param()?,
                bias_residual: source.param()?,
                pre_norm: rms_norm_3::Tensors::build(source)?,
                body: swi_glu::Tensors::build(source)?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            self.flat_norm.take(sink);
            sink.param(self.phi_pre);
            sink.param(self.phi_post);
            sink.param(self.phi_residual);
            sink.param(self.alpha_pre);
            sink.param(self.alpha_post);
            sink.param(self.alpha_residual);
            sink.param(self.bias_pre);
            sink.param(self.bias_post);
            sink.param(self.bias_residual);
            self.pre_norm.take(sink);
            self.body.take(sink);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, n=4, d=64]
        pub x: Tensor,
        /// act[b, t, w=256]
        pub u: Tensor,
        /// f32[b, t, n=4]
        pub v6: Tensor,
        /// f32[b, t, n=4]
        pub v9: Tensor,
        /// act[b, t, n=4]
        pub pre: Tensor,
        /// f32[b, t, n=4]
        pub v15: Tensor,
        /// f32[b, t, n=4]
        pub v18: Tensor,
        /// act[b, t, n=4]
        pub post: Tensor,
        /// f32[b, t, n=4, j=4]
        pub v25: Tensor,
        /// f32[b, t, n=4, j=4]
        pub logits: Tensor,
        /// act[b, t, n=4, j=4]
        pub residual: Tensor,
        /// act[b, t, d=64]
        pub y: Tensor,
        /// act[b, t, j=4, d=64]
        pub v34: Tensor,
        /// What the call keeps.
        pub flat_norm_call: rms_norm_2::Saved,
        /// What the call keeps.
        pub pre_norm_call: rms_norm_3::Saved,
        /// What the call keeps.
        pub body_call: swi_glu::Saved,
    }
    /// `x` act[b, t, n=4, d=64] -> act[b, t, n=4, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let v1 = ops::merge(x, 2, 2)?;
        let (u, flat_norm_call) = rms_norm_2::forward(like, &weights.flat_norm, &v1)?;
        drop(v1);
        let v5 = ops::contract(&u, weights.phi_pre, "btw,nw->btn")?;
        let v6 = ops::to_f32(&v5, like)?;
        drop(v5);
        let v7 = ops::mul(weights.alpha_pre, &v6)?;
        let v9 = ops::add(&v7, weights.bias_pre)?;
        drop(v7);
        let v10 = ops::sigmoid(&v9)?;
        let pre = ops::to_act(&v10, like.kind())?;
        drop(v10);
        let v14 = ops::contract(&u, weights.phi_post, "btw,nw->btn")?;
        let v15 = ops::to_f32(&v14, like)?;
        drop(v14);
        let v16 = ops::mul(weights.alpha_post, &v15)?;
        let v18 = ops::add(&v16, weights.bias_post)?;
        drop(v16);
        let v19 = ops::sigmoid(&v18)?;
        let v20 = ops::affine(&v19, 2f64, 0f64)?;
        drop(v19);
        let post = ops::to_act(&v20, like.kind())?;
        drop(v20);
        let v24 = ops::contract(&u, weights.phi_residual, "btw,njw->btnj")?;
        let v25 = ops::to_f32(&v24, like)?;
        drop(v24);
        let v26 = ops::mul(weights.alpha_residual, &v25)?;
        let logits = ops::add(&v26, weights.bias_residual)?;
        drop(v26);
        let v29 = ops::sinkhorn(&logits, 20, 0.000001f64)?;
        let residual = ops::to_act(&v29, like.kind())?;
        drop(v29);
        let v31 = ops::contract(&pre, x, "btn,btnd->btd")?;
        let (v32, pre_norm_call) = rms_norm_3::forward(like, &weights.pre_norm, &v31)?;
        drop(v31);
        let (y, body_call) = swi_glu::forward(like, &weights.body, &v32)?;
        drop(v32);
        let v34 = Tensor::shallow_clone(x);
        let mixed = ops::contract(&residual, &v34, "btnj,btjd->btnd")?;
        let written = ops::contract(&post, &y, "btn,btd->btnd")?;
        let v37 = ops::add(&mixed, &written)?;
        let saved = Saved {
            x: x.shallow_clone(),
            u: u,
            v6: v6,
            v9: v9,
            pre: pre,
            v15: v15,
            v18: v18,
            post: post,
            v25: v25,
            logits: logits,
            residual: residual,
            y: y,
            v34: v34,
            flat_norm_call,
            pre_norm_call,
            body_call,
        };
        Ok((v37, saved))
    }
    /// Takes `d_result` act[b, t, n=4, d=64], gives `d_x` act[b, t, n=4, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let v2 = ops::contract(d_result, &saved.y, "btnd,btd->btn")?;
        let v4 = ops::contract(d_result, &saved.post, "btnd,btn->btd")?;
        let v6 = ops::contract(d_result, &saved.v34, "btnd,btjd->btnj")?;
        let v8 = ops::contract(d_result, &saved.residual, "btnd,btnj->btdj")?;
        let v9 = ops::permute(&v8, &[0, 1, 3, 2])?;
        drop(v8);
        let v10 = Tensor::shallow_clone(&v9);
        drop(v9);
        let v11 = swi_glu::backward(
            like,
            &weights.body,
            &saved.body_call,
            &mut grads.body,
            &v4,
        )?;
        drop(v4);
        let v12 = rms_norm_3::backward(
            like,
            &weights.pre_norm,
            &saved.pre_norm_call,
            &mut grads.pre_norm,
            &v11,
        )?;
        drop(v11);
        let v14 = ops::contract(&v12, &saved.x, "btd,btnd->btn")?;
        let v16 = ops::contract(&v12, &saved.pre, "btd,btn->btdn")?;
        drop(v12);
        let v17 = ops::permute(&v16, &[0, 1, 3, 2])?;
        drop(v16);
        let v18 = ops::add(&v10, &v17)?;
        drop(v10);
        drop(v17);
        let v19 = ops::to_f32(&v6, like)?;
        drop(v6);
        let v21 = ops::sinkhorn_grad(&saved.logits, &v19, 20, 0.000001f64)?;
        drop(v19);
        let v22 = ops::sum(&v21, &[0, 1])?;
        let v24 = ops::mul(&v21, &saved.v25)?;
        let v26 = ops::mul(&v21, weights.alpha_residual)?;
        drop(v21);
        let v27 = ops::sum(&v24, &[0, 1, 2, 3])?;
        drop(v24);
        let v28 = ops::to_act(&v26, like.kind())?;
        drop(v26);
        let v30 = ops::contract(&v28, weights.phi_residual, "btnj,njw->btw")?;
        let v32 = ops::contract(&v28, &saved.u, "btnj,btw->njw")?;
        drop(v28);
        let v33 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v34 = ops::affine(&v33, 2f64, 0f64)?;
        drop(v33);
        let v36 = ops::sigmoid_grad(&saved.v18, &v34)?;
        drop(v34);
        let v37 = ops::sum(&v36, &[0, 1])?;
        let v39 = ops::mul(&v36, &saved.v15)?;
        let v41 = ops::mul(&v36, weights.alpha_post)?;
        drop(v36);
        let v42 = ops::sum(&v39, &[0, 1, 2])?;
        drop(v39);
        let v43 = ops::to_act(&v41, like.kind())?;
        drop(v41);
        let v45 = ops::contract(&v43, weights.phi_post, "btn,nw->btw")?;
        let v46 = ops::contract(&v43, &saved.u, "btn,btw->nw")?;
        drop(v43);
        let v47 = ops::add(&v30, &v45)?;
        drop(v30);
        drop(v45);
        let v48 = ops::to_f32(&v14, like)?;
        drop(v14);
        let v50 = ops::sigmoid_grad(&saved.v9, &v48)?;
        drop(v48);
        let v51 = ops::sum(&v50, &[0, 1])?;
        let v53 = ops::mul(&v50, &saved.v6)?;
        let v55 = ops::mul(&v50, weights.alpha_pre)?;
        drop(v50);
        let v56 = ops::sum(&v53, &[0, 1, 2])?;
        drop(v53);
        let v57 = ops::to_act(&v55, like.kind())?;
        drop(v55);
        let v59 = ops::contract(&v57, weights.phi_pre, "btn,nw->btw")?;
        let v60 = ops::contract(&v57, &saved.u, "btn,btw->nw")?;
        drop(v57);
        let v61 = ops::add(&v47, &v59)?;
        drop(v47);
        drop(v59);
        let v62 = rms_norm_2::backward(
            like,
            &weights.flat_norm,
            &saved.flat_norm_call,
            &mut grads.flat_norm,
            &v61,
        )?;
        drop(v61);
        let v63 = ops::split(&v62, 2, &[4, 64])?;
        drop(v62);
        let v64 = ops::add(&v18, &v63)?;
        accumulate(&mut grads.phi_pre, v60)?;
        accumulate(&mut grads.phi_post, v46)?;
        accumulate(&mut grads.phi_residual, v32)?;
        accumulate(&mut grads.alpha_pre, v56)?;
        accumulate(&mut grads.alpha_post, v42)?;
        accumulate(&mut grads.alpha_residual, v27)?;
        accumulate(&mut grads.bias_pre, v51)?;
        accumulate(&mut grads.bias_post, v37)?;
        accumulate(&mut grads.bias_residual, v22)?;
        Ok(v64)
    }
}
/// One layer: a mixer over positions, then a feed-forward, each in its hyper-connection.
pub mod decoder_layer {
    use super::{hyper_connection, hyper_connection_2};
    use lightc_runtime::bind::{Sink, Source};
    use lightc_runtime::{Result, Tensor};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// `mix`
        pub mix: hyper_connection::Tensors<T>,
        /// `feed`
        pub feed: hyper_connection_2::Tensors<T>,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                mix: hyper_connection::Tensors::build(source)?,
                feed: hyper_connection_2::Tensors::build(source)?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            self.mix.take(sink);
            self.feed.take(sink);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// What the call keeps.
        pub mix_call: hyper_connection::Saved,
        /// What the call keeps.
        pub feed_call: hyper_connection_2::Saved,
    }
    /// `x` act[b, t, n=4, d=64] -> act[b, t, n=4, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let (v1, mix_call) = hyper_connection::forward(like, &weights.mix, x)?;
        let (v2, feed_call) = hyper_connection_2::forward(like, &weights.feed, &v1)?;
        let saved = Saved { mix_call, feed_call };
        Ok((v2, saved))
    }
    /// Takes `d_result` act[b, t, n=4, d=64], gives `d_x` act[b, t, n=4, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let v1 = hyper_connection_2::backward(
            like,
            &weights.feed,
            &saved.feed_call,
            &mut grads.feed,
            d_result,
        )?;
        let v2 = hyper_connection::backward(
            like,
            &weights.mix,
            &saved.mix_call,
            &mut grads.mix,
            &v1,
        )?;
        Ok(v2)
    }
}
/// Gated sparse attention: softmax attention over the keys that an indexer selects.
///
/// **Indexer** (heads `index_head`, width `index_channel`, one key for all of its heads), 32-bit:
///
/// ```text
/// score_ts = sum over index heads of sigmoid(index_weight x_t)
///            * sigmoid(index_query x_t . index_key x_s / sqrt(width) + index_bias)
///
/// ```
/// **Budget.** `var_t` is the population variance of row `t` over all columns, where a future key
/// counts as 0. `budget_t = clamp(floor(budget_base var_t / max(ema, 1e-6)), budget_min,
/// budget_max)`. `ema` follows the mean of `var` over all ranks at 1% a step; a step uses the value
/// from before it.
///
/// **Selection.** Per query the best `budget_t` keys up to `t`, of which the first `sinks` keys
/// always rank first; the same set for all heads. Ties go to the smaller index.
///
/// **Attention.** `v = sigmoid(value_gate x) * (value x)`; rotary on queries and keys; scale
/// `1 / sqrt(k)`; `y = out [ sigmoid(output_gate x) * attention ]`.
///
/// Only the chosen indexes leave the indexer, so its parameters are frozen: fixed random features.
pub mod gated_sparse_attention {
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// State f32[], starts at 1.0.
        pub ema: T,
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub query: T,
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub key: T,
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub value: T,
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub value_gate: T,
        /// Parameter act[e=64, d=64], normal(0.02), trained.
        pub output_gate: T,
        /// Parameter act[d=64, e=64], normal(0.02), trained.
        pub out: T,
        /// Parameter act[index_head=2, index_channel=16, d=64], normal(0.02), frozen: only selected indexes leave the indexer.
        pub index_query: T,
        /// Parameter act[index_channel=16, d=64], normal(0.02), frozen: only selected indexes leave the indexer.
        pub index_key: T,
        /// Parameter act[index_head=2, d=64], normal(0.02), frozen: only selected indexes leave the indexer.
        pub index_weight: T,
        /// Parameter f32[index_head=2], zeros(), frozen: only selected indexes leave the indexer.
        pub index_bias: T,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                ema: source.state()?,
                query: source.param()?,
                key: source.param()?,
                value: source.param()?,
                value_gate: source.param()?,
                output_gate: source.param()?,
                out: source.param()?,
                index_query: source.param()?,
                index_key: source.param()?,
                index_weight: source.param()?,
                index_bias: source.param()?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.state(self.ema);
            sink.param(self.query);
            sink.param(self.key);
            sink.param(self.value);
            sink.param(self.value_gate);
            sink.param(self.output_gate);
            sink.param(self.out);
            sink.param(self.index_query);
            sink.param(self.index_key);
            sink.param(self.index_weight);
            sink.param(self.index_bias);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, d=64]
        pub x: Tensor,
        /// bool[b, t, s=t]
        pub selected: Tensor,
        /// f32[b, t, e=64]
        pub v52: Tensor,
        /// f32[b, t, e=64]
        pub v55: Tensor,
        /// f32[b, t, e=64]
        pub v56: Tensor,
        /// act[b, t, h=2, k=32]
        pub queries: Tensor,
        /// act[b, s=t, h=2, k=32]
        pub keys: Tensor,
        /// act[b, s=t, h=2, m=32]
        pub values: Tensor,
        /// f32[b, t, e=64]
        pub v70: Tensor,
        /// f32[b, t, e=64]
        pub passed: Tensor,
        /// f32[b, t, e=64]
        pub v73: Tensor,
        /// act[b, t, e=64]
        pub v75: Tensor,
    }
    /// `x` act[b, t, d=64] -> act[b, t, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        next: &mut Tensors<Option<Tensor>>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let size_t = ops::length(x, 1)?;
        let v2 = ops::contract(x, weights.index_query, "btd,iad->btia")?;
        let index_queries = ops::to_f32(&v2, like)?;
        drop(v2);
        let v5 = ops::contract(x, weights.index_key, "btd,id->bti")?;
        let v6 = Tensor::shallow_clone(&v5);
        drop(v5);
        let index_keys = ops::to_f32(&v6, like)?;
        drop(v6);
        let v8 = ops::contract(&index_queries, &index_keys, "btia,bsa->btis")?;
        drop(index_queries);
        drop(index_keys);
        let match_ = ops::affine(&v8, 0.25f64, 0f64)?;
        drop(v8);
        let v11 = ops::contract(x, weights.index_weight, "btd,id->bti")?;
        let v12 = ops::to_f32(&v11, like)?;
        drop(v11);
        let heed = ops::sigmoid(&v12)?;
        drop(v12);
        let v15 = ops::add(&match_, &ops::align(weights.index_bias, &[-1, -1, 0, -1])?)?;
        drop(match_);
        let v16 = ops::sigmoid(&v15)?;
        drop(v15);
        let score = ops::contract(&heed, &v16, "bti,btis->bts")?;
        drop(heed);
        drop(v16);
        let v18 = ops::causal(size_t, size_t, like)?;
        let v19 = ops::constant_f32(0f64, like)?;
        let past = ops::where_(&v18, &score, &v19)?;
        drop(v18);
        let v21 = ops::mean(&past, &[2])?;
        let v22 = ops::sub(&past, &ops::align(&v21, &[0, 1, -1])?)?;
        drop(past);
        drop(v21);
        let v23 = ops::square(&v22)?;
        drop(v22);
        let variance = ops::mean(&v23, &[2])?;
        drop(v23);
        let v25 = ops::affine(&variance, 32f64, 0f64)?;
        let v27 = ops::constant_f32(0.000001f64, like)?;
        let v28 = ops::max(weights.ema, &v27)?;
        let v29 = ops::div(&v25, &v28)?;
        drop(v25);
        let wanted = ops::floor(&v29)?;
        drop(v29);
        let budget = ops::clamp(&wanted, 8f64, 64f64)?;
        drop(wanted);
        let selected = ops::select_top(&score, &budget, 4, 64)?;
        drop(score);
        drop(budget);
        let spread = ops::mean(&variance, &[0, 1])?;
        drop(variance);
        let v34 = ops::affine(weights.ema, 0.99f64, 0f64)?;
        let v35 = ops::sum_ranks(&spread)?;
        let v36 = ops::affine(&v35, 0.01f64, 0f64)?;
        let v37 = ops::affine(&spread, 0f64, 0f64)?;
        let v38 = ops::affine(&v37, 1f64, 1f64)?;
        let v39 = ops::sum_ranks(&v38)?;
        let v40 = ops::div(&v36, &v39)?;
        let v41 = ops::add(&v34, &v40)?;
        let v43 = ops::contract(x, weights.query, "btd,ed->bte")?;
        let v44 = ops::split(&v43, 2, &[2, 32])?;
        drop(v43);
        let q_heads = ops::to_f32(&v44, like)?;
        drop(v44);
        let v47 = ops::contract(x, weights.key, "btd,ed->bte")?;
        let v48 = ops::split(&v47, 2, &[2, 32])?;
        drop(v47);
        let k_heads = ops::to_f32(&v48, like)?;
        drop(v48);
        let v51 = ops::contract(x, weights.value, "btd,ed->bte")?;
        let v52 = ops::to_f32(&v51, like)?;
        drop(v51);
        let v54 = ops::contract(x, weights.value_gate, "btd,ed->bte")?;
        let v55 = ops::to_f32(&v54, like)?;
        drop(v54);
        let v56 = ops::sigmoid(&v55)?;
        let v57 = ops::mul(&v52, &v56)?;
        let opened = ops::to_act(&v57, like.kind())?;
        drop(v57);
        let v59 = ops::rotary(&q_heads, 1, 100000f64, false)?;
        drop(q_heads);
        let v60 = ops::affine(&v59, 0.17677669529663687f64, 0f64)?;
        drop(v59);
        let queries = ops::to_act(&v60, like.kind())?;
        drop(v60);
        let v62 = ops::rotary(&k_heads, 1, 100000f64, false)?;
        drop(k_heads);
        let v63 = ops::to_act(&v62, like.kind())?;
        drop(v62);
        let keys = Tensor::shallow_clone(&v63);
        drop(v63);
        let v65 = ops::split(&opened, 2, &[2, 32])?;
        drop(opened);
        let values = Tensor::shallow_clone(&v65);
        drop(v65);
        let attended = ops::masked_attention(&queries, &keys, &values, &selected)?;
        let v69 = ops::contract(x, weights.output_gate, "btd,ed->bte")?;
        let v70 = ops::to_f32(&v69, like)?;
        drop(v69);
        let passed = ops::sigmoid(&v70)?;
        let v72 = ops::merge(&attended, 2, 2)?;
        drop(attended);
        let v73 = ops::to_f32(&v72, like)?;
        drop(v72);
        let v74 = ops::mul(&v73, &passed)?;
        let v75 = ops::to_act(&v74, like.kind())?;
        drop(v74);
        let v77 = ops::contract(&v75, weights.out, "bte,de->btd")?;
        next.ema = Some(v41);
        let saved = Saved {
            x: x.shallow_clone(),
            selected: selected,
            v52: v52,
            v55: v55,
            v56: v56,
            queries: queries,
            keys: keys,
            values: values,
            v70: v70,
            passed: passed,
            v73: v73,
            v75: v75,
        };
        Ok((v77, saved))
    }
    /// Takes `d_result` act[b, t, d=64], gives `d_x` act[b, t, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let v2 = ops::contract(d_result, weights.out, "btd,de->bte")?;
        let v4 = ops::contract(d_result, &saved.v75, "btd,bte->de")?;
        let v5 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v7 = ops::mul(&v5, &saved.passed)?;
        let v9 = ops::mul(&v5, &saved.v73)?;
        drop(v5);
        let v10 = ops::to_act(&v7, like.kind())?;
        drop(v7);
        let v11 = ops::split(&v10, 2, &[2, 32])?;
        drop(v10);
        let v13 = ops::sigmoid_grad(&saved.v70, &v9)?;
        drop(v9);
        let v14 = ops::to_act(&v13, like.kind())?;
        drop(v13);
        let v16 = ops::contract(&v14, weights.output_gate, "bte,ed->btd")?;
        let v18 = ops::contract(&v14, &saved.x, "bte,btd->ed")?;
        drop(v14);
        let (v23, v24, v25) = ops::masked_attention_grad(
            &saved.queries,
            &saved.keys,
            &saved.values,
            &saved.selected,
            &v11,
        )?;
        drop(v11);
        let v26 = Tensor::shallow_clone(&v25);
        drop(v25);
        let v27 = ops::merge(&v26, 2, 2)?;
        drop(v26);
        let v28 = Tensor::shallow_clone(&v24);
        drop(v24);
        let v29 = ops::to_f32(&v28, like)?;
        drop(v28);
        let v30 = ops::rotary(&v29, 1, 100000f64, true)?;
        drop(v29);
        let v31 = ops::to_f32(&v23, like)?;
        drop(v23);
        let v32 = ops::affine(&v31, 0.17677669529663687f64, 0f64)?;
        drop(v31);
        let v33 = ops::rotary(&v32, 1, 100000f64, true)?;
        drop(v32);
        let v34 = ops::to_f32(&v27, like)?;
        drop(v27);
        let v36 = ops::mul(&v34, &saved.v56)?;
        let v38 = ops::mul(&v34, &saved.v52)?;
        drop(v34);
        let v40 = ops::sigmoid_grad(&saved.v55, &v38)?;
        drop(v38);
        let v41 = ops::to_act(&v40, like.kind())?;
        drop(v40);
        let v43 = ops::contract(&v41, weights.value_gate, "bte,ed->btd")?;
        let v44 = ops::contract(&v41, &saved.x, "bte,btd->ed")?;
        drop(v41);
        let v45 = ops::add(&v16, &v43)?;
        drop(v16);
        drop(v43);
        let v46 = ops::to_act(&v36, like.kind())?;
        drop(v36);
        let v48 = ops::contract(&v46, weights.value, "bte,ed->btd")?;
        let v49 = ops::contract(&v46, &saved.x, "bte,btd->ed")?;
        drop(v46);
        let v50 = ops::add(&v45, &v48)?;
        drop(v45);
        drop(v48);
        let v51 = ops::to_act(&v30, like.kind())?;
        drop(v30);
        let v52 = ops::merge(&v51, 2, 2)?;
        drop(v51);
        let v54 = ops::contract(&v52, weights.key, "bte,ed->btd")?;
        let v55 = ops::contract(&v52, &saved.x, "bte,btd->ed")?;
        drop(v52);
        let v56 = ops::add(&v50, &v54)?;
        drop(v50);
        drop(v54);
        let v57 = ops::to_act(&v33, like.kind())?;
        drop(v33);
        let v58 = ops::merge(&v57, 2, 2)?;
        drop(v57);
        let v60 = ops::contract(&v58, weights.query, "bte,ed->btd")?;
        let v61 = ops::contract(&v58, &saved.x, "bte,btd->ed")?;
        drop(v58);
        let v62 = ops::add(&v56, &v60)?;
        accumulate(&mut grads.query, v61)?;
        accumulate(&mut grads.key, v55)?;
        accumulate(&mut grads.value, v49)?;
        accumulate(&mut grads.value_gate, v44)?;
        accumulate(&mut grads.output_gate, v18)?;
        accumulate(&mut grads.out, v4)?;
        Ok(v62)
    }
}
/// Manifold-constrained hyper-connection: runs an inner block on a mix of `n` residual streams.
///
/// With `u` the norm of all streams of one position, flattened to `w = n d`:
///
/// ```text
/// pre      = sigmoid(alpha_pre (phi_pre u) + bias_pre)                      [n]
/// post     = 2 sigmoid(alpha_post (phi_post u) + bias_post)                 [n]
/// residual = sinkhorn(alpha_residual (phi_residual u) + bias_residual)      [n, j]
/// y        = inner(pre_norm(sum over n of pre_n x_n))                       [d]
/// out_n    = sum over j of residual_nj x_j  +  post_n y                     [n, d]
///
/// ```
/// Sinkhorn makes the residual mix doubly stochastic with the column step last, so the mean over
/// streams of the residual part is that of `x`. At the start every mix is uniform: the wrapper
/// averages the streams and is not near the identity. Mixes are computed in 32 bits.
pub mod hyper_connection_3 {
    use super::{gated_sparse_attention, rms_norm_2, rms_norm_3};
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// `flat_norm`
        pub flat_norm: rms_norm_2::Tensors<T>,
        /// Parameter act[n=4, w=256], normal(0.02), trained.
        pub phi_pre: T,
        /// Parameter act[n=4, w=256], normal(0.02), trained.
        pub phi_post: T,
        /// Parameter act[n=4, j=4, w=256], normal(0.02), trained.
        pub phi_residual: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_pre: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_post: T,
        /// Parameter f32[], constant(0.1), trained.
        pub alpha_residual: T,
        /// Parameter f32[n=4], zeros(), trained.
        pub bias_pre: T,
        /// Parameter f32[n=4], zeros(), trained.
        pub bias_post: T,
        /// Parameter f32[n=4, j=4], zeros(), trained.
        pub bias_residual: T,
        /// `pre_norm`
        pub pre_norm: rms_norm_3::Tensors<T>,
        /// `body`
        pub body: gated_sparse_attention::Tensors<T>,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                flat_norm: rms_norm_2::Tensors::build(source)?,
                phi_pre: source.param()?,
                phi_post: source.param()?,
                phi_residual: source.param()?,
                alpha_pre: source.param()?,
                alpha_post: source.param()?,
                alpha_residual: source.param()?,
                bias_pre: source.param()?,
                bias_post: source.param()?,
                bias_residual: source.param()?,
                pre_norm: rms_norm_3::Tensors::build(source)?,
                body: gated_sparse_attention::Tensors::build(source)?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            self.flat_norm.take(sink);
            sink.param(self.phi_pre);
            sink.param(self.phi_post);
            sink.param(self.phi_residual);
            sink.param(self.alpha_pre);
            sink.param(self.alpha_post);
            sink.param(self.alpha_residual);
            sink.param(self.bias_pre);
            sink.param(self.bias_post);
            sink.param(self.bias_residual);
            self.pre_norm.take(sink);
            self.body.take(sink);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, n=4, d=64]
        pub x: Tensor,
        /// act[b, t, w=256]
        pub u: Tensor,
        /// f32[b, t, n=4]
        pub v6: Tensor,
        /// f32[b, t, n=4]
        pub v9: Tensor,
        /// act[b, t, n=4]
        pub pre: Tensor,
        /// f32[b, t, n=4]
        pub v15: Tensor,
        /// f32[b, t, n=4]
        pub v18: Tensor,
        /// act[b, t, n=4]
        pub post: Tensor,
        /// f32[b, t, n=4, j=4]
        pub v25: Tensor,
        /// f32[b, t, n=4, j=4]
        pub logits: Tensor,
        /// act[b, t, n=4, j=4]
        pub residual: Tensor,
        /// act[b, t, d=64]
        pub y: Tensor,
        /// act[b, t, j=4, d=64]
        pub v34: Tensor,
        /// What the call keeps.
        pub flat_norm_call: rms_norm_2::Saved,
        /// What the call keeps.
        pub pre_norm_call: rms_norm_3::Saved,
        /// What the call keeps.
        pub body_call: gated_sparse_attention::Saved,
    }
    /// `x` act[b, t, n=4, d=64] -> act[b, t, n=4, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        next: &mut Tensors<Option<Tensor>>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let v1 = ops::merge(x, 2, 2)?;
        let (u, flat_norm_call) = rms_norm_2::forward(like, &weights.flat_norm, &v1)?;
        drop(v1);
        let v5 = ops::contract(&u, weights.phi_pre, "btw,nw->btn")?;
        let v6 = ops::to_f32(&v5, like)?;
        drop(v5);
        let v7 = ops::mul(weights.alpha_pre, &v6)?;
        let v9 = ops::add(&v7, weights.bias_pre)?;
        drop(v7);
        let v10 = ops::sigmoid(&v9)?;
        let pre = ops::to_act(&v10, like.kind())?;
        drop(v10);
        let v14 = ops::contract(&u, weights.phi_post, "btw,nw->btn")?;
        let v15 = ops::to_f32(&v14, like)?;
        drop(v14);
        let v16 = ops::mul(weights.alpha_post, &v15)?;
        let v18 = ops::add(&v16, weights.bias_post)?;
        drop(v16);
        let v19 = ops::sigmoid(&v18)?;
        let v20 = ops::affine(&v19, 2f64, 0f64)?;
        drop(v19);
        let post = ops::to_act(&v20, like.kind())?;
        drop(v20);
        let v24 = ops::contract(&u, weights.phi_residual, "btw,njw->btnj")?;
        let v25 = ops::to_f32(&v24, like)?;
        drop(v24);
        let v26 = ops::mul(weights.alpha_residual, &v25)?;
        let logits = ops::add(&v26, weights.bias_residual)?;
        drop(v26);
        let v29 = ops::sinkhorn(&logits, 20, 0.000001f64)?;
        let residual = ops::to_act(&v29, like.kind())?;
        drop(v29);
        let v31 = ops::contract(&pre, x, "btn,btnd->btd")?;
        let (v32, pre_norm_call) = rms_norm_3::forward(like, &weights.pre_norm, &v31)?;
        drop(v31);
        let (y, body_call) = gated_sparse_attention::forward(
            like,
            &weights.body,
            &mut next.body,
            &v32,
        )?;
        drop(v32);
        let v34 = Tensor::shallow_clone(x);
        let mixed = ops::contract(&residual, &v34, "btnj,btjd->btnd")?;
        let written = ops::contract(&post, &y, "btn,btd->btnd")?;
        let v37 = ops::add(&mixed, &written)?;
        let saved = Saved {
            x: x.shallow_clone(),
            u: u,
            v6: v6,
            v9: v9,
            pre: pre,
            v15: v15,
            v18: v18,
            post: post,
            v25: v25,
            logits: logits,
            residual: residual,
            y: y,
            v34: v34,
            flat_norm_call,
            pre_norm_call,
            body_call,
        };
        Ok((v37, saved))
    }
    /// Takes `d_result` act[b, t, n=4, d=64], gives `d_x` act[b, t, n=4, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let v2 = ops::contract(d_result, &saved.y, "btnd,btd->btn")?;
        let v4 = ops::contract(d_result, &saved.post, "btnd,btn->btd")?;
        let v6 = ops::contract(d_result, &saved.v34, "btnd,btjd->btnj")?;
        let v8 = ops::contract(d_result, &saved.residual, "btnd,btnj->btdj")?;
        let v9 = ops::permute(&v8, &[0, 1, 3, 2])?;
        drop(v8);
        let v10 = Tensor::shallow_clone(&v9);
        drop(v9);
        let v11 = gated_sparse_attention::backward(
            like,
            &weights.body,
            &saved.body_call,
            &mut grads.body,
            &v4,
        )?;
        drop(v4);
        let v12 = rms_norm_3::backward(
            like,
            &weights.pre_norm,
            &saved.pre_norm_call,
            &mut grads.pre_norm,
            &v11,
        )?;
        drop(v11);
        let v14 = ops::contract(&v12, &saved.x, "btd,btnd->btn")?;
        let v16 = ops::contract(&v12, &saved.pre, "btd,btn->btdn")?;
        drop(v12);
        let v17 = ops::permute(&v16, &[0, 1, 3, 2])?;
        drop(v16);
        let v18 = ops::add(&v10, &v17)?;
        drop(v10);
        drop(v17);
        let v19 = ops::to_f32(&v6, like)?;
        drop(v6);
        let v21 = ops::sinkhorn_grad(&saved.logits, &v19, 20, 0.000001f64)?;
        drop(v19);
        let v22 = ops::sum(&v21, &[0, 1])?;
        let v24 = ops::mul(&v21, &saved.v25)?;
        let v26 = ops::mul(&v21, weights.alpha_residual)?;
        drop(v21);
        let v27 = ops::sum(&v24, &[0, 1, 2, 3])?;
        drop(v24);
        let v28 = ops::to_act(&v26, like.kind())?;
        drop(v26);
        let v30 = ops::contract(&v28, weights.phi_residual, "btnj,njw->btw")?;
        let v32 = ops::contract(&v28, &saved.u, "btnj,btw->njw")?;
        drop(v28);
        let v33 = ops::to_f32(&v2, like)?;
        drop(v2);
        let v34 = ops::affine(&v33, 2f64, 0f64)?;
        drop(v33);
        let v36 = ops::sigmoid_grad(&saved.v18, &v34)?;
        drop(v34);
        let v37 = ops::sum(&v36, &[0, 1])?;
        let v39 = ops::mul(&v36, &saved.v15)?;
        let v41 = ops::mul(&v36, weights.alpha_post)?;
        drop(v36);
        let v42 = ops::sum(&v39, &[0, 1, 2])?;
        drop(v39);
        let v43 = ops::to_act(&v41, like.kind())?;
        drop(v41);
        let v45 = ops::contract(&v43, weights.phi_post, "btn,nw->btw")?;
        let v46 = ops::contract(&v43, &saved.u, "btn,btw->nw")?;
        drop(v43);
        let v47 = ops::add(&v30, &v45)?;
        drop(v30);
        drop(v45);
        let v48 = ops::to_f32(&v14, like)?;
        drop(v14);
        let v50 = ops::sigmoid_grad(&saved.v9, &v48)?;
        drop(v48);
        let v51 = ops::sum(&v50, &[0, 1])?;
        let v53 = ops::mul(&v50, &saved.v6)?;
        let v55 = ops::mul(&v50, weights.alpha_pre)?;
        drop(v50);
        let v56 = ops::sum(&v53, &[0, 1, 2])?;
        drop(v53);
        let v57 = ops::to_act(&v55, like.kind())?;
        drop(v55);
        let v59 = ops::contract(&v57, weights.phi_pre, "btn,nw->btw")?;
        let v60 = ops::contract(&v57, &saved.u, "btn,btw->nw")?;
        drop(v57);
        let v61 = ops::add(&v47, &v59)?;
        drop(v47);
        drop(v59);
        let v62 = rms_norm_2::backward(
            like,
            &weights.flat_norm,
            &saved.flat_norm_call,
            &mut grads.flat_norm,
            &v61,
        )?;
        drop(v61);
        let v63 = ops::split(&v62, 2, &[4, 64])?;
        drop(v62);
        let v64 = ops::add(&v18, &v63)?;
        accumulate(&mut grads.phi_pre, v60)?;
        accumulate(&mut grads.phi_post, v46)?;
        accumulate(&mut grads.phi_residual, v32)?;
        accumulate(&mut grads.alpha_pre, v56)?;
        accumulate(&mut grads.alpha_post, v42)?;
        accumulate(&mut grads.alpha_residual, v27)?;
        accumulate(&mut grads.bias_pre, v51)?;
        accumulate(&mut grads.bias_post, v37)?;
        accumulate(&mut grads.bias_residual, v22)?;
        Ok(v64)
    }
}
/// One layer: a mixer over positions, then a feed-forward, each in its hyper-connection.
pub mod decoder_layer_2 {
    use super::{hyper_connection_2, hyper_connection_3};
    use lightc_runtime::bind::{Sink, Source};
    use lightc_runtime::{Result, Tensor};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// `mix`
        pub mix: hyper_connection_3::Tensors<T>,
        /// `feed`
        pub feed: hyper_connection_2::Tensors<T>,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                mix: hyper_connection_3::Tensors::build(source)?,
                feed: hyper_connection_2::Tensors::build(source)?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            self.mix.take(sink);
            self.feed.take(sink);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// What the call keeps.
        pub mix_call: hyper_connection_3::Saved,
        /// What the call keeps.
        pub feed_call: hyper_connection_2::Saved,
    }
    /// `x` act[b, t, n=4, d=64] -> act[b, t, n=4, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        next: &mut Tensors<Option<Tensor>>,
        x: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let (v1, mix_call) = hyper_connection_3::forward(
            like,
            &weights.mix,
            &mut next.mix,
            x,
        )?;
        let (v2, feed_call) = hyper_connection_2::forward(like, &weights.feed, &v1)?;
        let saved = Saved { mix_call, feed_call };
        Ok((v2, saved))
    }
    /// Takes `d_result` act[b, t, n=4, d=64], gives `d_x` act[b, t, n=4, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<Tensor> {
        let v1 = hyper_connection_2::backward(
            like,
            &weights.feed,
            &saved.feed_call,
            &mut grads.feed,
            d_result,
        )?;
        let v2 = hyper_connection_3::backward(
            like,
            &weights.mix,
            &saved.mix_call,
            &mut grads.mix,
            &v1,
        )?;
        Ok(v2)
    }
}
/// Multi-token prediction: from the hidden state at `t` and the embedding of token `t + 1`, a
/// hidden state that predicts token `t + 2`.
///
/// ```text
/// z = fuse [hidden ; next]         [d]
/// y = mean over streams of layers((z, 0, .., 0))
///
/// ```
/// Its two layers are the halves of a decoder layer, a mixer over positions and a feed-forward,
/// each in its hyper-connection. Joined by `plain()` they are that layer.
///
/// The hidden state comes normed and with its gradient. The caller applies the final norm and the
/// output head, which are those of the next-token loss.
pub mod multi_token_prediction {
    use super::{hyper_connection_2, hyper_connection_3};
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// Parameter act[d=64, c=128], normal(0.02), trained.
        pub fuse: T,
        /// `layers`
        pub layers_0: hyper_connection_3::Tensors<T>,
        /// `layers`
        pub layers_1: hyper_connection_2::Tensors<T>,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                fuse: source.param()?,
                layers_0: hyper_connection_3::Tensors::build(source)?,
                layers_1: hyper_connection_2::Tensors::build(source)?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            sink.param(self.fuse);
            self.layers_0.take(sink);
            self.layers_1.take(sink);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t, c=128]
        pub v2: Tensor,
        /// Length of axis `b`.
        pub size_b: i64,
        /// Length of axis `t`.
        pub size_t: i64,
        /// What the call keeps.
        pub layers_0_call: hyper_connection_3::Saved,
        /// What the call keeps.
        pub layers_1_call: hyper_connection_2::Saved,
    }
    /// `hidden` act[b, t, d=64], `next` act[b, t, d=64] -> act[b, t, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        next: &mut Tensors<Option<Tensor>>,
        hidden: &Tensor,
        next_: &Tensor,
    ) -> Result<(Tensor, Saved)> {
        let size_b = ops::length(hidden, 0)?;
        let size_t = ops::length(hidden, 1)?;
        let v2 = ops::concat(&[hidden, next_], 2)?;
        let z = ops::contract(&v2, weights.fuse, "btc,dc->btd")?;
        let streams = ops::place(&z, 2, 0, 4)?;
        drop(z);
        let (v6, layers_0_call) = hyper_connection_3::forward(
            like,
            &weights.layers_0,
            &mut next.layers_0,
            &streams,
        )?;
        let (v6, layers_1_call) = hyper_connection_2::forward(
            like,
            &weights.layers_1,
            &v6,
        )?;
        drop(streams);
        let v7 = ops::mean(&v6, &[2])?;
        let saved = Saved {
            v2: v2,
            size_b,
            size_t,
            layers_0_call,
            layers_1_call,
        };
        Ok((v7, saved))
    }
    /// Takes `d_result` act[b, t, d=64], gives `d_hidden` act[b, t, d=64], `d_next` act[b, t, d=64]; adds parameter gradients to `grads`.
    pub fn backward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_result: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let size_b = saved.size_b;
        let size_t = saved.size_t;
        let v1 = ops::affine(d_result, 0.25f64, 0f64)?;
        let v2 = ops::broadcast(&v1, &[0, 1, -1, 2], &[size_b, size_t, 4, 64])?;
        drop(v1);
        let v3 = hyper_connection_2::backward(
            like,
            &weights.layers_1,
            &saved.layers_1_call,
            &mut grads.layers_1,
            &v2,
        )?;
        let v3 = hyper_connection_3::backward(
            like,
            &weights.layers_0,
            &saved.layers_0_call,
            &mut grads.layers_0,
            &v3,
        )?;
        drop(v2);
        let v4 = ops::pick(&v3, 2, 0)?;
        drop(v3);
        let v6 = ops::contract(&v4, weights.fuse, "btd,dc->btc")?;
        let v8 = ops::contract(&v4, &saved.v2, "btd,btc->dc")?;
        drop(v4);
        let v9 = ops::slice(&v6, 2, 0, 64)?;
        let v10 = ops::slice(&v6, 2, 64, 128)?;
        accumulate(&mut grads.fuse, v8)?;
        Ok((v9, v10))
    }
}
/// A decoder-only language model with next-token and multi-token losses.
///
/// A batch row of `u = T + 2` tokens gives `T` positions: inputs `tokens[0 .. T]`, next-token
/// targets `tokens[1 .. T+1]`, multi-token targets `tokens[2 .. T+2]`. Tokens `0 .. T+1` are
/// embedded once; the multi-token head reads the same embeddings one position later.
///
/// ```text
/// x      = embed_norm(embed(tokens))  with the memory of the sequence before injected
/// X      = layers((x, 0, .., 0))                          [b, t, n, d]
/// hidden = final_norm(mean over streams of X)             [b, t, d]
/// loss   = ntp + mtp_weight mtp + aux
///
/// ```
/// Both losses are cross entropies through one untied `lm_head`, with logits capped by
/// `c tanh(z / c)` where `softcap` is not 0. The outgoing memory is the hidden state of the last
/// position, without its gradient.
///
/// `aux` holds the penalties of the blocks below: the mean over the layers that have some, and those
/// of the multi-token head at its weight. In a dense stage it is 0.
pub mod language_model {
    use super::{
        decoder_layer, decoder_layer_2, kronecker_embedding, memory_stream,
        multi_token_prediction, rms_norm, rms_norm_3,
    };
    use lightc_runtime::bind::{Sink, Source, accumulate};
    use lightc_runtime::{Result, Tensor, ops};
    /// The tensors of the block: itself, gradients or next states, by what `T` is.
    pub struct Tensors<T> {
        /// `embed`
        pub embed: kronecker_embedding::Tensors<T>,
        /// `embed_norm`
        pub embed_norm: rms_norm::Tensors<T>,
        /// `memory_in`
        pub memory_in: memory_stream::Tensors<T>,
        /// `layers`
        pub layers_0: decoder_layer::Tensors<T>,
        /// `layers`
        pub layers_1: decoder_layer::Tensors<T>,
        /// `layers`
        pub layers_2: decoder_layer::Tensors<T>,
        /// `layers`
        pub layers_3: decoder_layer_2::Tensors<T>,
        /// `layers`
        pub layers_4: decoder_layer::Tensors<T>,
        /// `layers`
        pub layers_5: decoder_layer::Tensors<T>,
        /// `layers`
        pub layers_6: decoder_layer::Tensors<T>,
        /// `layers`
        pub layers_7: decoder_layer_2::Tensors<T>,
        /// `final_norm`
        pub final_norm: rms_norm_3::Tensors<T>,
        /// Parameter act[vocab=2048, d=64], normal(0.02), trained.
        pub lm_head: T,
        /// `mtp`
        pub mtp: multi_token_prediction::Tensors<T>,
    }
    impl<T> Tensors<T> {
        /// Takes every tensor from a source, in canonical order.
        pub fn build(source: &mut impl Source<T>) -> Result<Self> {
            Ok(Tensors {
                embed: kronecker_embedding::Tensors::build(source)?,
                embed_norm: rms_norm::Tensors::build(source)?,
                memory_in: memory_stream::Tensors::build(source)?,
                layers_0: decoder_layer::Tensors::build(source)?,
                layers_1: decoder_layer::Tensors::build(source)?,
                layers_2: decoder_layer::Tensors::build(source)?,
                layers_3: decoder_layer_2::Tensors::build(source)?,
                layers_4: decoder_layer::Tensors::build(source)?,
                layers_5: decoder_layer::Tensors::build(source)?,
                layers_6: decoder_layer::Tensors::build(source)?,
                layers_7: decoder_layer_2::Tensors::build(source)?,
                final_norm: rms_norm_3::Tensors::build(source)?,
                lm_head: source.param()?,
                mtp: multi_token_prediction::Tensors::build(source)?,
            })
        }
        /// Gives every tensor to a sink, in canonical order.
        pub fn take(self, sink: &mut impl Sink<T>) {
            self.embed.take(sink);
            self.embed_norm.take(sink);
            self.memory_in.take(sink);
            self.layers_0.take(sink);
            self.layers_1.take(sink);
            self.layers_2.take(sink);
            self.layers_3.take(sink);
            self.layers_4.take(sink);
            self.layers_5.take(sink);
            self.layers_6.take(sink);
            self.layers_7.take(sink);
            self.final_norm.take(sink);
            sink.param(self.lm_head);
            self.mtp.take(sink);
        }
    }
    /// What the forward keeps for the backward.
    pub struct Saved {
        /// act[b, t=u-2, d=64]
        pub hidden: Tensor,
        /// index[b, t=u-2]
        pub ntp_targets: Tensor,
        /// index[b, t=u-2]
        pub mtp_targets: Tensor,
        /// act[b, t=u-2, d=64]
        pub v18: Tensor,
        /// Length of axis `b`.
        pub size_b: i64,
        /// Length of axis `u`.
        pub size_u: i64,
        /// What the call keeps.
        pub embed_call: kronecker_embedding::Saved,
        /// What the call keeps.
        pub embed_norm_call: rms_norm::Saved,
        /// What the call keeps.
        pub memory_in_call: memory_stream::Saved,
        /// What the call keeps.
        pub layers_0_call: decoder_layer::Saved,
        /// What the call keeps.
        pub layers_1_call: decoder_layer::Saved,
        /// What the call keeps.
        pub layers_2_call: decoder_layer::Saved,
        /// What the call keeps.
        pub layers_3_call: decoder_layer_2::Saved,
        /// What the call keeps.
        pub layers_4_call: decoder_layer::Saved,
        /// What the call keeps.
        pub layers_5_call: decoder_layer::Saved,
        /// What the call keeps.
        pub layers_6_call: decoder_layer::Saved,
        /// What the call keeps.
        pub layers_7_call: decoder_layer_2::Saved,
        /// What the call keeps.
        pub final_norm_call: rms_norm_3::Saved,
        /// What the call keeps.
        pub mtp_call: multi_token_prediction::Saved,
        /// What the call keeps.
        pub final_norm_call_2: rms_norm_3::Saved,
    }
    /// `tokens` index[b, u], `memory` act[b, d=64], `continues` act[b] -> `loss` f32[], `ntp` f32[], `mtp` f32[], `aux` f32[], `memory` act[b, d=64].
    pub fn forward(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        next: &mut Tensors<Option<Tensor>>,
        tokens: &Tensor,
        memory: &Tensor,
        continues: &Tensor,
    ) -> Result<(Tensor, Tensor, Tensor, Tensor, Tensor, Saved)> {
        let size_b = ops::length(tokens, 0)?;
        let size_u = ops::length(tokens, 1)?;
        let v3 = ops::slice(tokens, 1, 0, size_u - 1)?;
        let (v4, embed_call) = kronecker_embedding::forward(like, &weights.embed, &v3)?;
        drop(v3);
        let (embedded, embed_norm_call) = rms_norm::forward(
            like,
            &weights.embed_norm,
            &v4,
        )?;
        drop(v4);
        let v6 = ops::slice(&embedded, 1, 0, size_u - 2)?;
        let (x, memory_in_call) = memory_stream::forward(
            like,
            &weights.memory_in,
            &v6,
            memory,
            continues,
        )?;
        drop(v6);
        let streams = ops::place(&x, 2, 0, 4)?;
        drop(x);
        let (v9, layers_0_call) = decoder_layer::forward(
            like,
            &weights.layers_0,
            &streams,
        )?;
        let (v9, layers_1_call) = decoder_layer::forward(like, &weights.layers_1, &v9)?;
        let (v9, layers_2_call) = decoder_layer::forward(like, &weights.layers_2, &v9)?;
        let (v9, layers_3_call) = decoder_layer_2::forward(
            like,
            &weights.layers_3,
            &mut next.layers_3,
            &v9,
        )?;
        let (v9, layers_4_call) = decoder_layer::forward(like, &weights.layers_4, &v9)?;
        let (v9, layers_5_call) = decoder_layer::forward(like, &weights.layers_5, &v9)?;
        let (v9, layers_6_call) = decoder_layer::forward(like, &weights.layers_6, &v9)?;
        let (v9, layers_7_call) = decoder_layer_2::forward(
            like,
            &weights.layers_7,
            &mut next.layers_7,
            &v9,
        )?;
        drop(streams);
        let v10 = ops::mean(&v9, &[2])?;
        drop(v9);
        let (hidden, final_norm_call) = rms_norm_3::forward(
            like,
            &weights.final_norm,
            &v10,
        )?;
        drop(v10);
        let ntp_targets = ops::slice(tokens, 1, 1, size_u - 1)?;
        let ntp_loss = ops::linear_cross_entropy(
            &hidden,
            weights.lm_head,
            &ntp_targets,
            15f64,
        )?;
        let v15 = ops::slice(&embedded, 1, 1, size_u - 1)?;
        drop(embedded);
        let (ahead, mtp_call) = multi_token_prediction::forward(
            like,
            &weights.mtp,
            &mut next.mtp,
            &hidden,
            &v15,
        )?;
        drop(v15);
        let mtp_targets = ops::slice(tokens, 1, 2, size_u)?;
        let (v18, final_norm_call_2) = rms_norm_3::forward(
            like,
            &weights.final_norm,
            &ahead,
        )?;
        drop(ahead);
        let mtp_loss = ops::linear_cross_entropy(
            &v18,
            weights.lm_head,
            &mtp_targets,
            15f64,
        )?;
        let v20 = ops::affine(&mtp_loss, 0.3f64, 0f64)?;
        let loss = ops::add(&ntp_loss, &v20)?;
        let v22 = ops::pick(&hidden, 1, size_u - 3)?;
        let v23 = Tensor::shallow_clone(&v22);
        drop(v22);
        let v24 = ops::constant(0f64, like)?;
        let v25 = ops::to_f32(&v24, like)?;
        let saved = Saved {
            hidden: hidden,
            ntp_targets: ntp_targets,
            mtp_targets: mtp_targets,
            v18: v18,
            size_b,
            size_u,
            embed_call,
            embed_norm_call,
            memory_in_call,
            layers_0_call,
            layers_1_call,
            layers_2_call,
            layers_3_call,
            layers_4_call,
            layers_5_call,
            layers_6_call,
            layers_7_call,
            final_norm_call,
            mtp_call,
            final_norm_call_2,
        };
        Ok((loss, ntp_loss, mtp_loss, v25, v23, saved))
    }
    /// Takes `d_loss` f32[], gives nothing; adds parameter gradients to `grads`.
    pub fn backward_loss(
        like: &Tensor,
        weights: &Tensors<&Tensor>,
        saved: &Saved,
        grads: &mut Tensors<Option<Tensor>>,
        d_loss: &Tensor,
    ) -> Result<()> {
        let size_b = saved.size_b;
        let size_u = saved.size_u;
        let v1 = ops::affine(d_loss, 0.3f64, 0f64)?;
        let (v5, v6) = ops::linear_cross_entropy_grad(
            &saved.v18,
            weights.lm_head,
            &saved.mtp_targets,
            &v1,
            15f64,
        )?;
        let v7 = rms_norm_3::backward(
            like,
            &weights.final_norm,
            &saved.final_norm_call_2,
            &mut grads.final_norm,
            &v5,
        )?;
        drop(v5);
        let (v8, v9) = multi_token_prediction::backward(
            like,
            &weights.mtp,
            &saved.mtp_call,
            &mut grads.mtp,
            &v7,
        )?;
        drop(v7);
        let v10 = ops::pad(&v9, 1, 1, 0)?;
        drop(v9);
        let (v13, v14) = ops::linear_cross_entropy_grad(
            &saved.hidden,
            weights.lm_head,
            &saved.ntp_targets,
            d_loss,
            15f64,
        )?;
        let v15 = ops::add(&v8, &v13)?;
        drop(v8);
        drop(v13);
        let v16 = ops::add(&v6, &v14)?;
        drop(v6);
        drop(v14);
        let v17 = rms_norm_3::backward(
            like,
            &weights.final_norm,
            &saved.final_norm_call,
            &mut grads.final_norm,
            &v15,
        )?;
        drop(v15);
        let v18 = ops::affine(&v17, 0.25f64, 0f64)?;
        drop(v17);
        let v19 = ops::broadcast(&v18, &[0, 1, -1, 2], &[size_b, size_u - 2, 4, 64])?;
        drop(v18);
        let v20 = decoder_layer_2::backward(
            like,
            &weights.layers_7,
            &saved.layers_7_call,
            &mut grads.layers_7,
            &v19,
        )?;
        let v20 = decoder_layer::backward(
            like,
            &weights.layers_6,
            &saved.layers_6_call,
            &mut grads.layers_6,
            &v20,
        )?;
        let v20 = decoder_layer::backward(
            like,
            &weights.layers_5,
            &saved.layers_5_call,
            &mut grads.layers_5,
            &v20,
        )?;
        let v20 = decoder_layer::backward(
            like,
            &weights.layers_4,
            &saved.layers_4_call,
            &mut grads.layers_4,
            &v20,
        )?;
        let v20 = decoder_layer_2::backward(
            like,
            &weights.layers_3,
            &saved.layers_3_call,
            &mut grads.layers_3,
            &v20,
        )?;
        let v20 = decoder_layer::backward(
            like,
            &weights.layers_2,
            &saved.layers_2_call,
            &mut grads.layers_2,
            &v20,
        )?;
        let v20 = decoder_layer::backward(
            like,
            &weights.layers_1,
            &saved.layers_1_call,
            &mut grads.layers_1,
            &v20,
        )?;
        let v20 = decoder_layer::backward(
            like,
            &weights.layers_0,
            &saved.layers_0_call,
            &mut grads.layers_0,
            &v20,
        )?;
        drop(v19);
        let v21 = ops::pick(&v20, 2, 0)?;
        drop(v20);
        let (v22, _, _) = memory_stream::backward(
            like,
            &weights.memory_in,
            &saved.memory_in_call,
            &mut grads.memory_in,
            &v21,
        )?;
        drop(v21);
        let v25 = ops::pad(&v22, 1, 0, 1)?;
        drop(v22);
        let v26 = ops::add(&v10, &v25)?;
        drop(v10);
        drop(v25);
        let v27 = rms_norm::backward(
            like,
            &weights.embed_norm,
            &saved.embed_norm_call,
            &mut grads.embed_norm,
            &v26,
        )?;
        drop(v26);
        kronecker_embedding::backward(
            like,
            &weights.embed,
            &saved.embed_call,
            &mut grads.embed,
            &v27,
        )?;
        accumulate(&mut grads.lm_head, v16)?;
        Ok(())
    }
}
