"""What answers prompts: a transformers model in this process, vLLM, or a server that speaks OpenAI's protocol."""
