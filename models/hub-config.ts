/**
 * The files that a hub repository has beside a generated decoder: `config.json` and
 * `generation_config.json` under the field names of Hugging Face transformers.
 */
import type { DecoderConfig } from './decoder-config.ts';
import { windowOf } from './decoder-config.ts';

const architectures: Readonly<Record<string, string>> = {
  bloom: 'BloomForCausalLM',
  gemma: 'GemmaForCausalLM',
  gemma2: 'Gemma2ForCausalLM',
  gpt_oss: 'GptOssForCausalLM',
  gptj: 'GPTJForCausalLM',
  llama: 'LlamaForCausalLM',
  olmo2: 'Olmo2ForCausalLM',
  phi: 'PhiForCausalLM',
  qwen2: 'Qwen2ForCausalLM',
  qwen3: 'Qwen3ForCausalLM',
  stablelm: 'StableLmForCausalLM',
};

/** `config.json` of a decoder. */
export function hubConfig(config: DecoderConfig): Record<string, unknown> {
  const { rotary, norm, mlp, attention, logitSoftcap } = config;
  const { scaling } = rotary;
  return {
    architectures: [architectures[config.family] ?? `${config.family}ForCausalLM`],
    model_type: config.family,
    hidden_size: config.width,
    intermediate_size: mlp.width,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headSize,
    hidden_act: mlp.activation === 'gelu-tanh' ? 'gelu_pytorch_tanh' : mlp.activation,
    [norm.kind === 'rms' ? 'rms_norm_eps' : 'layer_norm_eps']: norm.epsilon,
    rope_theta: rotary.base,
    ...(rotary.fraction === 1 ? {} : { partial_rotary_factor: rotary.fraction }),
    ...(scaling === undefined
      ? {}
      : {
          rope_scaling: {
            rope_type: 'llama3',
            factor: scaling.factor,
            low_freq_factor: scaling.lowFrequencyFactor,
            high_freq_factor: scaling.highFrequencyFactor,
            original_max_position_embeddings: scaling.originalContextLength,
          },
        }),
    ...(attention?.softcap === undefined ? {} : { attn_logit_softcapping: attention.softcap }),
    ...(logitSoftcap === undefined ? {} : { final_logit_softcapping: logitSoftcap }),
    ...(attention?.windows === undefined
      ? {}
      : {
          sliding_window: Math.max(...attention.windows),
          layer_types: Array.from({ length: config.layers }, (_, layer) =>
            windowOf(config, layer) > 0 ? 'sliding_attention' : 'full_attention',
          ),
        }),
    max_position_embeddings: config.contextLength,
    vocab_size: config.vocabulary,
    tie_word_embeddings: config.head !== 'untied',
    attention_bias: config.biases.queryKeyValue,
    mlp_bias: config.biases.mlp,
    bos_token_id: config.startId,
    eos_token_id: config.endId,
    torch_dtype: 'float32',
  };
}

/** `generation_config.json` of a decoder. */
export function hubGenerationConfig(config: DecoderConfig): Record<string, unknown> {
  return {
    bos_token_id: config.startId,
    eos_token_id: config.endId,
    max_length: config.contextLength,
  };
}
