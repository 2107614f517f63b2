"""Small random models of the real classes, one for each family, saved as the folders that `from_pretrained` reads."""

import functools
import json
from functools import partial
from pathlib import Path

import torch

from diffpo.compat import ensure_torchvision

ensure_torchvision()

from diffusers import (  # noqa: E402
    AnimateDiffPipeline,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableCascadeCombinedPipeline,
    StableCascadeUNet,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.guiders import ClassifierFreeGuidance  # noqa: E402
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_texts import (  # noqa: E402
    WIDTH,
    clip_config,
    clip_tokenizer,
    gemma,
    gemma_tokenizer,
    hunyuan_tokenizer,
    llama,
    llama_tokenizer,
    mistral,
    qwen3,
    qwen_tokenizer,
    qwen_vl,
    qwen_vl_text,
    t5,
    t5_tokenizer,
)
from transformers import (  # noqa: E402
    ByT5Tokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3ForCausalLM,
    Qwen3Model,
    UMT5Config,
    UMT5EncoderModel,
)

from diffpo.models.effnet import FILE, EfficientNetEncoder  # noqa: E402

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def vae(channels: int = 4, **more) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=16,
        **more,
    )


def unet(**more) -> UNet2DConditionModel:
    levels = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
    }
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        **{"cross_attention_dim": WIDTH, **levels, **more},
    )


def scheduler(prediction: str) -> DDIMScheduler:
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction)


def sd(prediction: str):
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl():
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1),
    )


def sd3():
    return StableDiffusion3Pipeline(
        vae=vae(8, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        text_encoder_3=t5(2 * WIDTH),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * WIDTH,
            out_channels=8,
            pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def pixart(kind=PixArtSigmaPipeline):
    return kind(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(scaling_factor=0.13025),
        transformer=PixArtTransformer2DModel(
            sample_size=32,  # the smallest whose list of resolutions the pipeline has
            patch_size=2,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            use_additional_conditions=False,
        ),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False),
    )


def flux():
    return FluxPipeline(
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def flux2(kind=Flux2Pipeline):
    text_encoder = mistral(8, 30) if kind is Flux2Pipeline else qwen3(Qwen3ForCausalLM, 8, 28)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        layers_per_block=1,
    )
    vae.bn.running_mean += torch.linspace(-1, 1, 16)
    vae.bn.running_var *= torch.linspace(0.5, 2, 16)
    return kind(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=qwen_tokenizer(),
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=kind is Flux2Pipeline,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def qwen_image():
    return QwenImagePipeline(
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[-0.7, 0.1, 0.0, 0.5],
            latents_std=[2.8, 1.4, 0.9, 0.5],
        ),
        text_encoder=qwen_vl(),
        tokenizer=qwen_tokenizer(),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def sana():
    levels = {"block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8)}
    levels |= {"qkv_multiscales": ((), (5,)), "layers_per_block": (1, 1)}
    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
            **{f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in levels.items()},
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=32,
            timestep_scale=0.5,
        ),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def z_image():
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3(Qwen3Model),
        tokenizer=qwen_tokenizer(),
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 32, 32],
        ),
    )


def cascade_unet(*attending: str, **more):
    blocks = ("SDCascadeResBlock", "SDCascadeTimestepBlock", *attending)
    return StableCascadeUNet(
        block_types_per_layer=(blocks, blocks),
        timestep_ratio_embedding_dim=8,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=WIDTH,
        clip_seq=2,
        **more,
    )


def stable_cascade():
    encoder = CLIPTextModelWithProjection(clip_config())
    return StableCascadeCombinedPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=encoder,
        decoder=cascade_unet(in_channels=4, out_channels=4, effnet_in_channels=16, timestep_conditioning_type=("sca",)),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=8),
        prior_prior=cascade_unet(
            "SDCascadeAttnBlock", clip_text_in_channels=WIDTH, clip_image_in_channels=8, switch_level=(False,)
        ),
        prior_text_encoder=encoder,
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


def wan(channels=4, boundary=None, **more):
    mean, std = torch.linspace(-0.7, 0.5, channels).tolist(), torch.linspace(2.8, 0.5, channels).tolist()
    network = partial(
        WanTransformer3DModel,
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(WIDTH, UMT5EncoderModel, UMT5Config),
        vae=AutoencoderKLWan(
            base_dim=3,
            z_dim=channels,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=mean,
            latents_std=std,
            **more,
        ),
        transformer=network(),
        transformer_2=network() if boundary else None,
        boundary_ratio=boundary,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        expand_timesteps=bool(more),
    )


def wan_5b():
    sizes = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
    return wan(6, is_residual=True, **sizes)


def cogvideox():
    return CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8,) * 4,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=0.7,
        ),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=WIDTH,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            use_rotary_positional_embeddings=True,
        ),
        scheduler=CogVideoXDDIMScheduler(
            snr_shift_scale=3.0,
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,
        ),
    )


def ltx():
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        scaling_factor=0.8,
    )
    vae.latents_mean += torch.linspace(-1, 1, 8)
    vae.latents_std *= torch.linspace(0.5, 2, 8)
    return LTXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae,
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
    )


def hunyuanvideo():
    return HunyuanVideoPipeline(
        text_encoder=llama(),
        tokenizer=llama_tokenizer(),
        text_encoder_2=CLIPTextModel(clip_config(max_position_embeddings=77)),
        tokenizer_2=clip_tokenizer(),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8,) * 4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
        ),
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            rope_axes_dim=(2, 4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def hunyuanvideo15():
    return HunyuanVideo15Pipeline(
        text_encoder=qwen_vl_text(),
        tokenizer=hunyuan_tokenizer(),
        text_encoder_2=t5(2 * WIDTH, vocab=400),
        tokenizer_2=ByT5Tokenizer(),
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(16, 16),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
            downsample_match_channel=False,
            upsample_match_channel=False,
        ),
        transformer=HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=WIDTH,
            text_embed_2_dim=2 * WIDTH,
            image_embed_dim=12,
            rope_axes_dim=(2, 2, 4),
            target_size=16,
            task_type="t2v",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


def animatediff():
    return AnimateDiffPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        unet=UNetMotionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlockMotion",),
            up_block_types=("CrossAttnUpBlockMotion",),
            block_out_channels=(8,),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=WIDTH,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            motion_max_seq_length=8,
            use_motion_mid_block=False,
        ),
        motion_adapter=None,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False),
    )


PIPELINES = {
    "sd15": lambda: sd("epsilon"),
    "sd2": lambda: sd("v_prediction"),
    "sdxl": sdxl,
    "sd3": sd3,
    "pixart": pixart,
    "pixart-alpha": lambda: pixart(PixArtAlphaPipeline),
    "flux": flux,
    "flux2": flux2,
    "flux2-klein": lambda: flux2(Flux2KleinPipeline),
    "qwen-image": qwen_image,
    "sana": sana,
    "z-image": z_image,
    "stable-cascade": stable_cascade,
    "wan": wan,
    "wan-5b": wan_5b,
    "wan-a14b": lambda: wan(boundary=0.5),
    "cogvideox": cogvideox,
    "ltx": ltx,
    "hunyuanvideo": hunyuanvideo,
    "hunyuanvideo15": hunyuanvideo15,
    "animatediff": animatediff,
}
"""Every family and parametrisation that diffpo trains, by the name of its best-known model."""
CLIPS = {
    "wan": {"num_frames": 5, "height": 16, "width": 16},
    "wan-5b": {"num_frames": 5, "height": 32, "width": 32},
    "wan-a14b": {"num_frames": 5, "height": 16, "width": 16},
    "cogvideox": {"num_frames": 9, "height": 32, "width": 32},
    "ltx": {"num_frames": 9, "height": 64, "width": 64},
    "hunyuanvideo": {"num_frames": 5, "height": 16, "width": 16},
    "hunyuanvideo15": {"num_frames": 5, "height": 16, "width": 16},
    "animatediff": {"num_frames": 3, "height": 16, "width": 16},
}
"""Pipelines that make clips, and what plain diffusers is told to make a small one."""
IMAGES = [name for name in PIPELINES if name not in CLIPS]
DECODED = [name for name in IMAGES if name != "stable-cascade"]
"""Pipelines that decode their latents of pictures."""
TUNED = [(name, tuning) for tuning in ("full", "lora") for name in PIPELINES]
"""(pipeline, tuning): all of them go together."""


def open_plain(folder: Path):
    """A pipeline as a user of plain diffusers opens it; it can no longer open stage A of Stable Cascade unasked."""
    if not (folder / "vqgan").is_dir():
        return DiffusionPipeline.from_pretrained(folder)
    parts = StableCascadeCombinedPipeline.from_pretrained(folder, vqgan=None).components
    return StableCascadeCombinedPipeline(**parts | {"vqgan": PaellaVQModel.from_pretrained(folder / "vqgan")})


def as_called(pipeline, how: dict) -> dict:
    """What the call of plain diffusers is told: a guider is replaced by one with the scale; stage C has other words."""
    if isinstance(pipeline, StableCascadeCombinedPipeline):
        names = {"num_inference_steps": "prior_num_inference_steps", "guidance_scale": "prior_guidance_scale"}
        return {names.get(name, name): value for name, value in how.items()}
    if "guider" not in pipeline.components:
        return how
    pipeline.guider = pipeline.guider.new(guidance_scale=how["guidance_scale"])
    return {name: value for name, value in how.items() if name != "guidance_scale"}


def save_pipeline(name: str, folder: Path) -> Path:
    """Make and save one; random numbers are the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = PIPELINES[name]()
    pipeline.save_pretrained(folder)
    if name == "stable-cascade":
        save_file(effnet(), folder / FILE)
    return folder


@functools.cache
def effnet() -> dict[str, torch.Tensor]:
    """What encodes Stable Cascade's pictures, in its own size: random, with the statistics of some pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = EfficientNetEncoder(16)
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        images = 2 * torch.rand(4, 3, 64, 64) - 1
        with torch.no_grad():
            encoder(images)
            encoder.backbone.eval()
            encoder(images)
    return {key: x.half() if x.is_floating_point() else x for key, x in encoder.state_dict().items()}


def save_pairs(folder: Path, rows: int = 12, size: int = 16) -> Path:
    """A JSONL table of random pictures; a few prompts repeat.

    Beside it lies `labelled.jsonl`: the same with two captions, a soft label, 0.2 and 0.8 by turns, and a label of the
    one segment that a picture has, 1, 0 and -1 by turns.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    plain, labelled = [], []
    for i in range(rows):
        names = {}
        for side in ("chosen", "rejected"):
            pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
            names[side] = f"{i}-{side}.png"
            Image.fromarray(pixels.numpy()).save(folder / names[side])
        plain.append({"prompt": f"thing {i % 7}", **names})
        captions = {"chosen_prompt": f"good {i % 5}", "rejected_prompt": f"bad {i % 3}"}
        labels = {"preference": 0.8 if i % 2 else 0.2, "segments": [1 - i % 3]}
        labelled.append(plain[-1] | captions | labels)
    for name, table in (("labelled", labelled), ("pairs", plain)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, table)))
    return folder / "pairs.jsonl"
