"""The paper's tables and figures on the vision test bed and on SmolLM2's capitals."""
