//! A few tensors of each model that is not in `tests/data/architectures`, from its public code:
//! some that identify it, and some that could mislead.

/// Names and shapes.
pub type List = &'static [(&'static str, &'static [usize])];

/// An autoregressive model, which names cannot distinguish from Dream.
pub const LLAMA: List = &[
    ("model.embed_tokens.weight", &[32000, 4096]),
    ("model.layers.0.self_attn.q_proj.weight", &[4096, 4096]),
    ("model.layers.0.mlp.gate_proj.weight", &[11008, 4096]),
    ("model.layers.0.input_layernorm.weight", &[4096]),
    ("lm_head.weight", &[32000, 4096]),
];

/// Name, modality and tensors of each model.
pub const LISTS: &[(&str, &str, List)] = &[
    ("LLaMA", "text", LLAMA),
    (
        "LLaMA of llama.cpp",
        "text",
        &[
            ("token_embd.weight", &[32000, 4096]),
            ("blk.0.attn_q.weight", &[4096, 4096]),
            ("blk.0.ffn_gate.weight", &[11008, 4096]),
        ],
    ),
    (
        "SEDD",
        "text",
        &[
            ("vocab_embed.embedding", &[50258, 768]),
            ("sigma_map.mlp.0.weight", &[128, 256]),
            ("blocks.0.attn_qkv.weight", &[2304, 768]),
            ("blocks.0.adaLN_modulation.weight", &[4608, 128]),
            ("output_layer.linear.weight", &[50258, 768]),
        ],
    ),
    (
        "Stable Diffusion 3",
        "image",
        &[
            ("pos_embed.pos_embed", &[1, 36864, 1536]),
            ("pos_embed.proj.weight", &[1536, 16, 2, 2]),
            (
                "time_text_embed.timestep_embedder.linear_1.weight",
                &[1536, 256],
            ),
            ("context_embedder.weight", &[1536, 4096]),
            ("transformer_blocks.0.norm1.linear.weight", &[9216, 1536]),
            ("transformer_blocks.0.attn.add_k_proj.weight", &[1536, 1536]),
            ("norm_out.linear.weight", &[3072, 1536]),
            ("proj_out.weight", &[64, 1536]),
        ],
    ),
    (
        "Stable Diffusion 3, its own layout",
        "image",
        &[
            ("x_embedder.proj.weight", &[1536, 16, 2, 2]),
            ("t_embedder.mlp.0.weight", &[1536, 256]),
            ("y_embedder.mlp.0.weight", &[1536, 2048]),
            ("joint_blocks.0.x_block.attn.qkv.weight", &[4608, 1536]),
            (
                "joint_blocks.0.context_block.adaLN_modulation.1.weight",
                &[9216, 1536],
            ),
            ("final_layer.linear.weight", &[64, 1536]),
        ],
    ),
    (
        "PixArt",
        "image",
        &[
            ("pos_embed.proj.weight", &[1152, 4, 2, 2]),
            (
                "adaln_single.emb.timestep_embedder.linear_1.weight",
                &[1152, 256],
            ),
            ("adaln_single.linear.weight", &[6912, 1152]),
            ("caption_projection.linear_1.weight", &[1152, 4096]),
            ("transformer_blocks.0.scale_shift_table", &[6, 1152]),
            ("transformer_blocks.0.attn1.to_q.weight", &[1152, 1152]),
            ("scale_shift_table", &[2, 1152]),
            ("proj_out.weight", &[32, 1152]),
        ],
    ),
    (
        "PixArt, its own layout",
        "image",
        &[
            ("x_embedder.proj.weight", &[1152, 4, 2, 2]),
            ("t_block.1.weight", &[6912, 1152]),
            ("y_embedder.y_proj.fc1.weight", &[1152, 4096]),
            ("blocks.0.cross_attn.q_linear.weight", &[1152, 1152]),
        ],
    ),
    (
        "Hunyuan-DiT",
        "image",
        &[
            ("pos_embed.proj.weight", &[1408, 4, 2, 2]),
            (
                "time_extra_emb.timestep_embedder.linear_1.weight",
                &[1408, 256],
            ),
            ("blocks.0.attn1.to_q.weight", &[1408, 1408]),
            ("norm_out.linear.weight", &[2816, 1408]),
        ],
    ),
    (
        "Sana",
        "image",
        &[
            ("patch_embed.proj.weight", &[2240, 32, 1, 1]),
            (
                "time_embed.emb.timestep_embedder.linear_1.weight",
                &[2240, 256],
            ),
            (
                "transformer_blocks.0.ff.conv_depth.weight",
                &[11200, 1, 3, 3],
            ),
            ("proj_out.weight", &[32, 2240]),
        ],
    ),
    (
        "Lumina 2",
        "image",
        &[
            ("x_embedder.weight", &[2304, 64]),
            (
                "time_caption_embed.timestep_embedder.linear_1.weight",
                &[1024, 256],
            ),
            ("layers.0.attn.to_q.weight", &[2304, 2304]),
            ("norm_out.linear_1.weight", &[2304, 1024]),
        ],
    ),
    (
        "AuraFlow",
        "image",
        &[
            ("pos_embed.proj.weight", &[3072, 16]),
            ("time_step_proj.linear_1.weight", &[3072, 256]),
            ("joint_transformer_blocks.0.attn.to_q.weight", &[3072, 3072]),
            (
                "single_transformer_blocks.0.attn.to_q.weight",
                &[3072, 3072],
            ),
            ("proj_out.weight", &[16, 3072]),
        ],
    ),
    (
        "Qwen-Image",
        "image",
        &[
            ("img_in.weight", &[3072, 64]),
            ("txt_in.weight", &[3072, 3584]),
            (
                "time_text_embed.timestep_embedder.linear_1.weight",
                &[3072, 256],
            ),
            ("transformer_blocks.0.img_mod.1.weight", &[18432, 3072]),
            ("transformer_blocks.0.attn.add_q_proj.weight", &[3072, 3072]),
            (
                "transformer_blocks.0.txt_mlp.net.0.proj.weight",
                &[12288, 3072],
            ),
            ("proj_out.weight", &[64, 3072]),
        ],
    ),
    (
        "Wan",
        "image",
        &[
            ("patch_embedding.weight", &[5120, 16, 1, 2, 2]),
            (
                "condition_embedder.time_embedder.linear_1.weight",
                &[5120, 256],
            ),
            ("blocks.0.attn1.to_q.weight", &[5120, 5120]),
            ("proj_out.weight", &[64, 5120]),
        ],
    ),
    (
        "Wan, its own layout",
        "image",
        &[
            ("patch_embedding.weight", &[5120, 16, 1, 2, 2]),
            ("time_embedding.0.weight", &[5120, 256]),
            ("blocks.0.self_attn.q.weight", &[5120, 5120]),
            ("head.head.weight", &[64, 5120]),
        ],
    ),
    (
        "CogVideoX",
        "image",
        &[
            ("patch_embed.proj.weight", &[1920, 16, 2, 2]),
            ("time_embedding.linear_1.weight", &[512, 1920]),
            ("transformer_blocks.0.norm1.linear.weight", &[11520, 512]),
            ("proj_out.weight", &[64, 1920]),
        ],
    ),
    (
        "LTX-Video",
        "image",
        &[
            ("proj_in.weight", &[2048, 128]),
            (
                "time_embed.emb.timestep_embedder.linear_1.weight",
                &[2048, 256],
            ),
            ("transformer_blocks.0.scale_shift_table", &[6, 2048]),
            ("proj_out.weight", &[128, 2048]),
        ],
    ),
    (
        "HunyuanVideo",
        "image",
        &[
            ("img_in.proj.weight", &[3072, 16, 1, 2, 2]),
            (
                "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight",
                &[9216, 3072],
            ),
            ("time_in.mlp.0.weight", &[3072, 256]),
            ("double_blocks.0.img_mod.linear.weight", &[18432, 3072]),
            ("single_blocks.0.linear1.weight", &[21504, 3072]),
            ("final_layer.linear.weight", &[64, 3072]),
        ],
    ),
    (
        "Chroma",
        "image",
        &[
            ("img_in.weight", &[3072, 64]),
            ("distilled_guidance_layer.in_proj.weight", &[5120, 64]),
            ("double_blocks.0.img_attn.qkv.weight", &[9216, 3072]),
            ("single_blocks.0.linear1.weight", &[21504, 3072]),
        ],
    ),
    (
        "Stable Diffusion UNet, its own layout",
        "image",
        &[
            ("time_embed.0.weight", &[1280, 320]),
            ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
            ("input_blocks.1.0.in_layers.2.weight", &[320, 320, 3, 3]),
            ("middle_block.0.in_layers.2.weight", &[1280, 1280, 3, 3]),
            ("output_blocks.0.0.in_layers.2.weight", &[1280, 2560, 3, 3]),
            ("out.2.weight", &[4, 320, 3, 3]),
        ],
    ),
    (
        "InstructPix2Pix UNet",
        "image",
        &[
            ("conv_in.weight", &[320, 8, 3, 3]),
            ("time_embedding.linear_1.weight", &[1280, 320]),
            ("down_blocks.0.resnets.0.conv1.weight", &[320, 320, 3, 3]),
            ("up_blocks.0.resnets.0.conv1.weight", &[1280, 2560, 3, 3]),
            ("conv_out.weight", &[4, 320, 3, 3]),
        ],
    ),
    ("Stable Diffusion VAE", "image", STABLE_DIFFUSION_VAE),
    (
        "Stable Diffusion VAE, its own layout",
        "image",
        &[
            ("encoder.conv_in.weight", &[128, 3, 3, 3]),
            ("encoder.down.0.block.0.conv1.weight", &[128, 128, 3, 3]),
            ("encoder.mid.attn_1.q.weight", &[512, 512, 1, 1]),
            ("decoder.conv_in.weight", &[512, 4, 3, 3]),
            ("decoder.conv_out.weight", &[3, 128, 3, 3]),
            ("quant_conv.weight", &[8, 8, 1, 1]),
        ],
    ),
    (
        "Wan VAE",
        "image",
        &[
            ("encoder.conv1.weight", &[96, 3, 3, 3, 3]),
            (
                "encoder.downsamples.0.residual.2.weight",
                &[96, 96, 3, 3, 3],
            ),
            ("decoder.conv1.weight", &[384, 16, 3, 3, 3]),
            ("decoder.head.2.weight", &[3, 96, 3, 3, 3]),
        ],
    ),
    (
        "AudioLDM UNet",
        "audio",
        &[
            ("conv_in.weight", &[128, 8, 3, 3]),
            ("time_embedding.linear_1.weight", &[512, 128]),
            ("class_embedding.weight", &[512, 512]),
            ("down_blocks.0.resnets.0.conv1.weight", &[128, 128, 3, 3]),
            ("up_blocks.0.resnets.0.conv1.weight", &[640, 1280, 3, 3]),
            ("conv_out.weight", &[8, 128, 3, 3]),
        ],
    ),
    (
        "AudioLDM UNet, its own layout",
        "audio",
        &[
            ("time_embed.0.weight", &[512, 128]),
            ("input_blocks.0.0.weight", &[128, 8, 3, 3]),
            ("input_blocks.1.0.in_layers.2.weight", &[128, 128, 3, 3]),
            ("output_blocks.0.0.in_layers.2.weight", &[640, 1280, 3, 3]),
            ("out.2.weight", &[8, 128, 3, 3]),
        ],
    ),
    (
        "AudioLDM VAE",
        "audio",
        &[
            ("encoder.conv_in.weight", &[128, 1, 3, 3]),
            (
                "encoder.down_blocks.0.resnets.0.conv1.weight",
                &[128, 128, 3, 3],
            ),
            ("encoder.conv_out.weight", &[16, 512, 3, 3]),
            ("decoder.conv_in.weight", &[512, 8, 3, 3]),
            ("decoder.conv_out.weight", &[1, 128, 3, 3]),
        ],
    ),
    (
        "HiFi-GAN",
        "audio",
        &[
            ("conv_pre.weight", &[512, 80, 7]),
            ("upsampler.0.weight", &[512, 256, 16]),
            ("resblocks.0.convs1.0.weight", &[256, 256, 3]),
            ("conv_post.weight", &[1, 32, 7]),
        ],
    ),
    (
        "DiffWave",
        "audio",
        &[
            ("input_projection.weight", &[64, 1, 1]),
            ("diffusion_embedding.projection1.weight", &[512, 128]),
            ("spectrogram_upsampler.conv1.weight", &[1, 1, 3, 32]),
            ("residual_layers.0.dilated_conv.weight", &[128, 64, 3]),
            ("residual_layers.0.diffusion_projection.weight", &[64, 512]),
            ("skip_projection.weight", &[64, 64, 1]),
            ("output_projection.weight", &[1, 64, 1]),
        ],
    ),
    (
        "Stable Audio, its own layout",
        "audio",
        &[
            ("preprocess_conv.weight", &[64, 64, 1]),
            ("timestep_features.weight", &[128, 1]),
            ("to_timestep_embed.0.weight", &[1536, 256]),
            (
                "transformer.layers.0.self_attn.to_qkv.weight",
                &[4608, 1536],
            ),
            ("transformer.project_in.weight", &[1536, 64]),
            ("postprocess_conv.weight", &[64, 64, 1]),
        ],
    ),
    (
        "Oobleck",
        "audio",
        &[
            ("encoder.conv1.weight_g", &[128, 1, 1]),
            ("encoder.conv1.weight_v", &[128, 2, 7]),
            ("encoder.block.0.res_unit1.conv1.weight_v", &[128, 128, 7]),
            ("decoder.conv1.weight_v", &[2048, 64, 7]),
            ("decoder.block.0.conv_t1.weight_v", &[2048, 1024, 16]),
            ("decoder.conv2.weight_v", &[2, 128, 7]),
        ],
    ),
    (
        "Dance Diffusion",
        "audio",
        &[
            ("down_blocks.0.resnets.0.conv_1.weight", &[128, 18, 5]),
            ("mid_block.resnets.0.conv_1.weight", &[512, 512, 5]),
            ("up_blocks.0.resnets.0.conv_1.weight", &[512, 1024, 5]),
        ],
    ),
    (
        "F5-TTS",
        "audio",
        &[
            ("transformer.time_embed.time_mlp.0.weight", &[1024, 256]),
            ("transformer.text_embed.text_embed.weight", &[2546, 512]),
            (
                "transformer.input_embed.conv_pos_embed.conv1d.0.weight",
                &[1024, 64, 31],
            ),
            (
                "transformer.transformer_blocks.0.attn.to_q.weight",
                &[1024, 1024],
            ),
        ],
    ),
    (
        "ViT of timm",
        "unknown",
        &[
            ("cls_token", &[1, 1, 768]),
            ("pos_embed", &[1, 197, 768]),
            ("patch_embed.proj.weight", &[768, 3, 16, 16]),
            ("blocks.0.attn.qkv.weight", &[2304, 768]),
            ("blocks.0.mlp.fc1.weight", &[3072, 768]),
            ("head.weight", &[1000, 768]),
        ],
    ),
    (
        "ViT of transformers",
        "unknown",
        &[
            (
                "vit.embeddings.patch_embeddings.projection.weight",
                &[768, 3, 16, 16],
            ),
            (
                "vit.encoder.layer.0.attention.attention.query.weight",
                &[768, 768],
            ),
        ],
    ),
    (
        "TimeSformer",
        "unknown",
        &[
            ("time_embed", &[1, 8, 768]),
            ("patch_embed.proj.weight", &[768, 3, 16, 16]),
            ("blocks.0.temporal_attn.qkv.weight", &[2304, 768]),
        ],
    ),
    (
        "CLIP",
        "unknown",
        &[
            (
                "text_model.embeddings.token_embedding.weight",
                &[49408, 768],
            ),
            (
                "text_model.encoder.layers.0.self_attn.q_proj.weight",
                &[768, 768],
            ),
            (
                "vision_model.embeddings.patch_embedding.weight",
                &[1024, 3, 14, 14],
            ),
            (
                "vision_model.encoder.layers.0.mlp.fc1.weight",
                &[4096, 1024],
            ),
            ("visual_projection.weight", &[768, 1024]),
        ],
    ),
    (
        "T5",
        "unknown",
        &[
            ("shared.weight", &[32128, 4096]),
            ("encoder.embed_tokens.weight", &[32128, 4096]),
            (
                "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
                &[10240, 4096],
            ),
            (
                "decoder.block.0.layer.0.SelfAttention.q.weight",
                &[4096, 4096],
            ),
        ],
    ),
    (
        "GPT-2",
        "unknown",
        &[
            ("wte.weight", &[50257, 768]),
            ("wpe.weight", &[1024, 768]),
            ("h.0.attn.c_attn.weight", &[768, 2304]),
            ("h.0.mlp.c_fc.weight", &[768, 3072]),
        ],
    ),
    (
        "Whisper",
        "unknown",
        &[
            ("encoder.conv1.weight", &[384, 80, 3]),
            ("encoder.conv2.weight", &[384, 384, 3]),
            ("encoder.layers.0.self_attn.q_proj.weight", &[384, 384]),
            ("decoder.embed_tokens.weight", &[51865, 384]),
            ("decoder.embed_positions.weight", &[448, 384]),
            ("decoder.layers.0.fc1.weight", &[1536, 384]),
        ],
    ),
    (
        "wav2vec 2.0",
        "unknown",
        &[
            ("feature_extractor.conv_layers.0.conv.weight", &[512, 1, 10]),
            ("encoder.pos_conv_embed.conv.weight_v", &[768, 48, 128]),
            ("encoder.layers.0.attention.q_proj.weight", &[768, 768]),
        ],
    ),
    (
        "audio spectrogram transformer",
        "unknown",
        &[
            (
                "embeddings.patch_embeddings.projection.weight",
                &[768, 1, 16, 16],
            ),
            (
                "audio_spectrogram.encoder.layer.0.output.dense.weight",
                &[768, 3072],
            ),
        ],
    ),
    (
        "ResNet-18",
        "unknown",
        &[
            ("conv1.weight", &[64, 3, 7, 7]),
            ("layer1.0.conv1.weight", &[64, 64, 3, 3]),
            ("layer2.0.downsample.0.weight", &[128, 64, 1, 1]),
            ("fc.weight", &[1000, 512]),
        ],
    ),
    (
        "ResNet of transformers",
        "unknown",
        &[
            (
                "resnet.embedder.embedder.convolution.weight",
                &[64, 3, 7, 7],
            ),
            (
                "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
                &[64, 64, 1, 1],
            ),
        ],
    ),
    (
        "EfficientNet",
        "unknown",
        &[
            ("conv_stem.weight", &[32, 3, 3, 3]),
            ("blocks.0.0.conv_dw.weight", &[32, 1, 3, 3]),
            ("blocks.1.0.se.conv_reduce.weight", &[4, 96, 1, 1]),
            ("classifier.weight", &[1000, 1280]),
        ],
    ),
    (
        "U-Net that segments",
        "unknown",
        &[
            ("encoder.conv1.weight", &[64, 3, 7, 7]),
            ("encoder.layer1.0.conv1.weight", &[64, 64, 3, 3]),
            ("decoder.blocks.0.conv1.0.weight", &[256, 768, 3, 3]),
            ("segmentation_head.0.weight", &[1, 16, 3, 3]),
        ],
    ),
];

const STABLE_DIFFUSION_VAE: List = &[
    ("encoder.conv_in.weight", &[128, 3, 3, 3]),
    (
        "encoder.down_blocks.0.resnets.0.conv1.weight",
        &[128, 128, 3, 3],
    ),
    ("encoder.conv_out.weight", &[8, 512, 3, 3]),
    ("decoder.conv_in.weight", &[512, 4, 3, 3]),
    ("decoder.conv_out.weight", &[3, 128, 3, 3]),
    ("quant_conv.weight", &[8, 8, 1, 1]),
];
