(() => {
  "use strict";
  // A key pressed for the page before must not answer this one.
  const quiet = 250;
  const field = document.getElementById("token");
  const token = location.hash.slice(1);
  if (field && token) {
    history.replaceState(null, "", location.pathname);
    field.value = token;
    field.form.submit();
  }
  document.addEventListener("submit", (event) => {
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "yes";
  });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  const name = (event) =>
    event.code.startsWith("Digit") ? (event.shiftKey ? "shift+" : "") + event.code.slice(5) : event.key.toLowerCase();
  const press = (event) => {
    const focused = event.target;
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || focused === field) return;
    if (focused.type === "radio" && event.key.startsWith("Arrow")) return;
    const target = document.querySelector(`[data-key~="${CSS.escape(name(event))}"]`);
    if (!target) return;
    event.preventDefault();
    target.click();
  };
  setTimeout(() => {
    document.addEventListener("keydown", press);
    document.documentElement.dataset.keys = "ready";
  }, quiet);
})();
