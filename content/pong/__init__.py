"""The functions of "Pong from pixels", as its chapters explain them."""
