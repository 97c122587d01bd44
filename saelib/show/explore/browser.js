export default { render({ model, el }) { el.textContent = "stand-in"; } };
