"""A LiteLLM proxy configuration of a platform team, with two literal secrets."""

from __future__ import annotations

LITERAL_KEY = "sk-proj-5f1c9a-literal"
LITERAL_PASSWORD = "cache-pass-77aa-literal"
SAMPLE = f"""\
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-eu
      api_base: https://eu.example.openai.azure.com
      api_key: os.environ/AZURE_EU_KEY
      api_version: "2024-10-21"
      rpm: 600
    model_info: {{input_cost_per_token: 0.0000025, output_cost_per_token: 0.00001, id: azure-eu}}
  - model_name: gpt-4o
    litellm_params: {{model: gpt-4o, api_key: {LITERAL_KEY}, rpm: 300, organization: org-1}}
  - model_name: claude
    litellm_params: {{model: anthropic/claude-sonnet-4-5, api_key: os.environ/ANTHROPIC_API_KEY, max_tokens: 4096}}
  - model_name: llama
    litellm_params:
      model: hosted_vllm/meta-llama/Llama-3.1-8B-Instruct
      api_base: http://vllm:8000/v1
      timeout: 60
      max_parallel_requests: 32
    model_info: {{input_cost_per_token: 5.0e-08, output_cost_per_token: 0.00000008}}
  - model_name: embeddings
    litellm_params: {{model: openai/text-embedding-3-small, api_key: os.environ/OPENAI_API_KEY}}
router_settings:
  num_retries: 3
  allowed_fails: 3
  cooldown_time: 30
  model_group_alias: {{gpt-4: gpt-4o, fast: llama}}
  fallbacks: [{{gpt-4o: [claude]}}, {{llama: [gpt-4o]}}]
litellm_settings:
  request_timeout: 120
  drop_params: true
  callbacks: [prometheus, langfuse]
  context_window_fallbacks: [{{llama: [claude]}}]
  cache: true
  cache_params: {{type: redis, host: redis, password: {LITERAL_PASSWORD}}}
  max_budget: 500
  budget_duration: 30d
  default_key_generate_params: {{max_budget: 20, budget_duration: 1mo, rpm_limit: 60, tpm_limit: 90000}}
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  database_url: os.environ/DATABASE_URL
  max_parallel_requests: 8
"""
VARIABLES = ("ANTHROPIC_API_KEY", "AZURE_EU_KEY", "GPT_4O_2_API_KEY", "LITELLM_MASTER_KEY", "OPENAI_API_KEY")
"""Environment variables that the converted configuration needs."""
