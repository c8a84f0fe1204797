"""The allow-lists of `external`: families, classes, files and keys of third-party folders.

Before a name is added, check its module in the library: it must be a network or a tokenizer and nothing else.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ENCODERS = _words("""
    albert bert big_bird biogpt camembert clip_text_model data2vec-text deberta deberta-v2 distilbert
    electra ernie esm eurobert gemma gemma2 gemma3_text gpt2 gpt_neox layoutlm llama longformer megatron-bert
    mistral mobilebert modernbert mpnet nomic_bert opt qwen2 qwen3 rembert roberta roberta-prelayernorm roformer
    splinter squeezebert xlm-roberta xlm-roberta-xl xmod
""")  # families of text encoders
PARTS = ENCODERS | _words("clip_vision_model deit dinov2 siglip_vision_model vit")  # families in a pair of any two
TOKENIZERS = _words("""
    AlbertTokenizer BartTokenizer BertTokenizer BigBirdTokenizer CLIPTokenizer CamembertTokenizer CodeGenTokenizer
    DebertaTokenizer DebertaV2Tokenizer DistilBertTokenizer ElectraTokenizer FunnelTokenizer GPT2Tokenizer
    GPTNeoXTokenizer GemmaTokenizer LayoutLMTokenizer LlamaTokenizer LongformerTokenizer MPNetTokenizer
    PreTrainedTokenizer Qwen2Tokenizer RemBertTokenizer RobertaTokenizer Siglip2Tokenizer SiglipTokenizer
    SplinterTokenizer SqueezeBertTokenizer T5Tokenizer TokenizersBackend XLMRobertaTokenizer
""")  # classes; each also with Fast at its end
TOKEN_KEYS = _words("""
    additional_special_tokens bos_token cls_token eos_token extra_special_tokens mask_token pad_token sep_token
    unk_token
""")  # special tokens
TOKENIZER_KEYS = _words("""
    add_bos_token add_eos_token add_prefix_space added_tokens_decoder clean_up_tokenization_spaces do_basic_tokenize
    do_lower_case extra_ids keep_accents legacy model_input_names model_max_length never_split padding_side
    remove_space split_special_tokens strip_accents tokenize_chinese_chars trim_offsets truncation_side
""")  # of tokenizer_config.json, beside TOKEN_KEYS
TOKENIZER_FILES = _words("""
    merges.txt sentencepiece.bpe.model spiece.model spm.model tokenizer.json tokenizer.model vocab.json vocab.txt
""")  # copied as they are
PROCESSORS = _words("""
    BitImageProcessor BlipImageProcessor CLIPImageProcessor ChineseCLIPImageProcessor ConvNextImageProcessor
    DeiTImageProcessor EfficientNetImageProcessor OwlViTImageProcessor Owlv2ImageProcessor SiglipImageProcessor
    ViTImageProcessor
""")  # classes; each also with Fast at its end
PROCESSOR_KEYS = _words("""
    crop_pct crop_size default_to_square do_center_crop do_convert_rgb do_normalize do_pad do_rescale do_resize
    image_mean image_std include_top pad_size resample rescale_factor rescale_offset size size_divisor
""")  # of preprocessor_config.json
IGNORED = _words("""
    architectures auto_map chunk_size_feed_forward dtype id2label label2id num_labels output_attentions
    output_hidden_states per_layer_config problem_type return_dict torch_dtype torchscript transformers_version
    use_return_dict
""")  # keys of config.json that do not describe the network
