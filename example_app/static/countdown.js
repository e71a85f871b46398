// Counts down to the log-out, in a dialog that offers to stay. The server knows how
// much time is left, and that somebody used another tab; to ask is no activity.

const WARNING = 60; // seconds
const dialog = document.getElementById("countdown");
const shown = dialog.querySelector("output");
const form = dialog.querySelector("form");
let end = 0;
let timer = 0;

async function ask(address, options = {}) {
  clearTimeout(timer);
  try {
    const answer = await fetch(address, options);
    if (!answer.ok) throw new Error(answer.statusText);
    const { seconds } = await answer.json();
    if (seconds <= 0) return location.reload();
    end = Date.now() + seconds * 1000;
    show();
  } catch {
    timer = setTimeout(look, 5000); // there is no answer right now
  }
}

function look() {
  ask(dialog.dataset.left);
}

function show() {
  const seconds = Math.max(0, Math.ceil((end - Date.now()) / 1000));
  if (seconds > WARNING) {
    dialog.close();
    // No timer takes more than 24 days.
    timer = setTimeout(look, Math.min(seconds - WARNING, 86400) * 1000);
    return;
  }
  if (!dialog.open) dialog.showModal();
  shown.textContent = seconds;
  timer = setTimeout(seconds % 10 ? show : look, 1000);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask(form.action, { method: "POST", body: new FormData(form) });
});
look();
