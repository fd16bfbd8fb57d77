"""How families of models write tool calls as text, one module per kind of notation."""
